"""Parsers of files, one module a format."""
