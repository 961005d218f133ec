"""The knowledge agent: keeps the documents, and is the only one that writes."""
