"""Attention, and what it knows of positions: rotations, tables, distances."""
