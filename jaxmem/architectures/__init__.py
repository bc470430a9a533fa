"""Flax modules of published families, a file each; the rooms below them hold what they share."""
