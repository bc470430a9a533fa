"""Offload: weights and optimizer state in host memory, and on the device one layer at a time."""
