"""Configurations: frozen dataclasses with a field for each size and mechanism of a model."""
