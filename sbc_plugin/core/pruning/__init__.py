"""Which weights of a layer become zero, and where the others move."""
