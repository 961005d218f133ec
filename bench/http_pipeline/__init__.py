"""The pipeline as it is built with FastAPI and httpx: a service for each agent, JSON between them, answers as server-sent events."""
