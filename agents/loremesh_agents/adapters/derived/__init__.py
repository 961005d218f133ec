"""What indexes that live outside the graph store have in common, and the drivers of the engines that keep them."""
