"""The retriever: finds the evidence for a question in vectors, text and graph."""
