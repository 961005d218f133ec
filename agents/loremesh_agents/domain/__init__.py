"""What the agents talk about: frozen data and pure functions. Imports nothing of ours but itself."""
