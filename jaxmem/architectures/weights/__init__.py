"""The names of the tensors of a checkpoint, and the maps that make parameters of them."""
