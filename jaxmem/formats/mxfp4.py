"""MXFP4: the experts of gpt-oss, in blocks of 32 floats of 4 bits that share a power of two.

`NAME_blocks` (experts, n, k / 32, 16) has two codes a byte, the first in the low bits, and
`NAME_scales` (experts, n, k / 32) the exponents plus 127. A dense checkpoint has NAME (experts, k,
n). Open Compute Project, Microscaling Formats 1.0, 2023.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from ..codecs.float_formats import FloatArray
from ..codecs.packing import pack
from ..core.lazy import Lazy
from .quantized_matrix import QuantizedMatrix, check_tensor

ENDS = ("_blocks", "_scales")


@dataclasses.dataclass(frozen=True)
class Mxfp4Matrices(QuantizedMatrix):
    """The codes and scales of the matrices of all experts."""

    blocks: Lazy
    scales: Lazy

    def leaf(self, rows, fold, dtype):
        data, scale = self.blocks.load()[:, rows], self.scales.load()[:, rows]
        codes = np.stack([data & 15, data >> 4], -1).reshape(*data.shape[:2], self.shape[1])
        scale = jnp.asarray(np.ascontiguousarray(scale.swapaxes(-1, -2)))
        fields = pack(jnp.asarray(codes), 4, -2)
        return FloatArray(fields, scale, 4, 32, fold, jnp.dtype(dtype), None, "mxfp4")


def mxfp4(tensors: dict[str, Lazy], config: dict) -> dict[str, Mxfp4Matrices]:
    """The matrices of experts of a checkpoint of "mxfp4" by the names of their tensors.

    Raises:
        ValueError: tensors do not belong together.
    """
    result = {}
    for name, tensor in tensors.items():
        if name.endswith("_blocks"):
            stem, shape = name.removesuffix("_blocks"), tuple(tensor.shape)
            if len(shape) != 4 or shape[-1] != 16 or min(shape) < 1:
                raise ValueError(f"{name} has shape {shape}, expected experts, rows, blocks, 16")
            blocks = check_tensor(tensors, name, shape, "uint8")
            scales = check_tensor(tensors, f"{stem}_scales", shape[:3], "uint8")
            size = (shape[1], shape[2] * 32)
            result[stem] = Mxfp4Matrices(stem, size, blocks, scales, turned=True, experts=shape[0])
    return result
