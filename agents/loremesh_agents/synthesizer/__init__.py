"""The synthesizer: makes a prompt out of evidence."""
