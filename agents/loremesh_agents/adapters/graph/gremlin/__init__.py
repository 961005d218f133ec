"""Property graphs that are asked in Gremlin: JanusGraph and Amazon Neptune."""
