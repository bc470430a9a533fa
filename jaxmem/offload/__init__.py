"""Memory that is not weights: what a backward pass keeps, and where state lies."""
