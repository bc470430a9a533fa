"""Products with encoded weights: tile by tile in XLA, and Pallas kernels for a TPU."""
