"""The generator: writes answers, token by token."""
