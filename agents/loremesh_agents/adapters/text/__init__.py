"""Text indexes."""
