"""The graph store over any property graph: every write adds facts under a version of its own, and a version counts from when it is decided."""
