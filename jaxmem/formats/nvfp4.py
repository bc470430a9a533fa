"""NVFP4: blocks of 16 floats of 4 bits that share a scale of e4m3, as compressed-tensors stores it.

`weight_packed` (n, k / 2) has two codes of e2m1 a byte, the first in the low bits, `weight_scale`
is (n, k / 16), and a weight is code · scale / `weight_global_scale`. NVIDIA, 2025.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from ..codecs.float_formats import FloatArray
from ..codecs.packing import pack
from ..core.lazy import Lazy
from .quantized_matrix import QuantizedMatrix, check_tensor


@dataclasses.dataclass(frozen=True)
class Nvfp4Matrix(QuantizedMatrix):
    """Codes, scales of blocks, and the number that divides all of them."""

    data: Lazy  # (n, k / 2) uint8
    scale: Lazy  # (n, k / 16) e4m3
    divisor: Lazy  # one f32

    def leaf(self, rows, fold, dtype):
        data, scale = self.data.load()[rows], self.scale.load()[rows].view(np.uint8)
        divisor = self.divisor.load().reshape(1, 1)
        if not divisor.all() or not np.isfinite(divisor).all() or (scale & 127 == 127).any():
            raise ValueError(f"{self.name} has scales that are NaN or divided by 0")
        codes = np.stack([data & 15, data >> 4], -1).reshape(len(data), self.shape[1])
        fields = pack(jnp.asarray(codes), 4, -2)
        scale, whole = jnp.asarray(np.ascontiguousarray(scale.T)), jnp.asarray(1 / divisor)
        return FloatArray(fields, scale, 4, 16, fold, jnp.dtype(dtype), whole, "nvfp4")


def nvfp4_matrix(tensors: dict[str, Lazy], stem: str) -> Nvfp4Matrix:
    """The matrix of one module; the shapes and types of its tensors are checked.

    Raises:
        ValueError: tensors do not belong together.
    """
    shape = tuple(tensors[f"{stem}.weight_packed"].shape)
    if len(shape) != 2 or min(shape) < 1 or shape[1] % 8:
        raise ValueError(f"{stem}.weight_packed has shape {shape}, expected (n, 8 · blocks)")
    n, k = shape[0], 2 * shape[1]
    data = check_tensor(tensors, f"{stem}.weight_packed", shape, "uint8")
    scale = check_tensor(tensors, f"{stem}.weight_scale", (n, k // 16), "float8_e4m3fn")
    divisor = check_tensor(tensors, f"{stem}.weight_global_scale", (1,), "float32")
    return Nvfp4Matrix(stem, (n, k), data, scale, divisor)
