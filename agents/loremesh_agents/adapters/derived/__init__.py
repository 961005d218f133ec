"""What derived indexes have in common: those within a graph store, those outside it, and the drivers of the engines that keep these."""
