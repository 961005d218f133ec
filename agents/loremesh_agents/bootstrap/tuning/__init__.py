"""Finds settings of an engine that writes answers by trying them out."""
