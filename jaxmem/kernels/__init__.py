"""Pallas bodies that a leaf's product calls on a TPU, each beside the XLA form it must equal."""
