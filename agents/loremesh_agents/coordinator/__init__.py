"""The coordinator: plans, asks the other agents, and streams what they find and write."""
