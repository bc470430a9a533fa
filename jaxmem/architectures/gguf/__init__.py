"""Decoders in GGUF files: which architecture a configuration is, and its fields."""
