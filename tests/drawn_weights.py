"""Weights that are drawn from the name and shape of a tensor, so that no file has to hold them."""

import zlib

import numpy as np


def drawn(name, shape):
    """The f32 tensor of a name: gains and variances of norms are around 1, the rest around 0."""
    x = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    gain = len(shape) == 1 and name.endswith(("weight", "running_var"))
    return (gain + 0.25 * x).astype(np.float32)
