"""FP8: weights of e4m3 with scales, as DeepSeek-V3, FBGEMM and compressed-tensors store them.

A weight (n, k) is code · scale, with one scale for the matrix, for each row, or for each block of
rows and columns (DeepSeek-AI, 2024). Files call the scale `weight_scale_inv` or `weight_scale`.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from ..codecs.double_quantized_scales import DoubleQuantArray
from ..codecs.dynamic_quantization import DynamicArray
from ..codecs.float_formats import FloatArray
from ..codecs.packing import pack
from ..codecs.scale_tables import row_block_scales
from ..core.lazy import Lazy
from ..io.json_fields import JsonFields
from .quantized_matrix import FLOATS, QuantizedMatrix, check_tensor

SCALES = ("weight_scale_inv", "weight_scale")
ENDS = ("weight", *SCALES, "activation_scale", "input_scale", "input_scale_ub")
_UNIT = 2.0**-8  # of the scales of a FloatArray of e4m3


@dataclasses.dataclass(frozen=True)
class Fp8Matrix(QuantizedMatrix):
    """Codes of e4m3 (n, k), and scales (blocks of rows, blocks of columns)."""

    codes: Lazy
    scale: Lazy
    block: tuple[int, int]  # rows and columns of a block
    dynamic: bool = False  # whether its inputs are rounded to e4m3, token by token

    def leaf(self, rows, fold, dtype):
        codes = self.codes.load()[rows].view(np.uint8)
        if (codes & 127 == 127).any():
            raise ValueError(f"{self.name} holds NaN")
        values = self.scale.load()
        values = values.reshape(-(-self.shape[0] // self.block[0]), -1) / values.dtype.type(_UNIT)
        scale = row_block_scales(values, self.block[0], rows) if self.block[0] > 1 else None
        scale = jnp.asarray(values[rows].T) if scale is None else scale
        fields, columns = pack(jnp.asarray(codes), 8, -2), min(self.block[1], self.shape[1])
        leaf = FloatArray(fields, scale, 8, columns, fold, jnp.dtype(dtype), None, "e4m3")
        leaf = leaf if isinstance(scale, jnp.ndarray) else DoubleQuantArray(leaf)
        return DynamicArray(leaf, None, "e4m3") if self.dynamic else leaf


def fp8(tensors: dict[str, Lazy], config: dict) -> dict[str, Fp8Matrix]:
    """The matrices of a checkpoint of "fp8" or "fbgemm_fp8" by the names of their modules.

    Products take inputs as they are. The kernels of these formats also round them to fp8.

    Raises:
        ValueError: numbers of another type than e4m3, or tensors do not belong together.
    """
    fields = JsonFields(config, "quantization_config.")
    fields.expect("fmt", "e4m3")
    block = fields.integers("weight_block_size")
    if block and (len(block) != 2 or min(block) < 1):
        fields.refuse("weight_block_size", "rows and columns of a block")
    result = {}
    for name in tensors:
        stem, _, end = name.rpartition(".")
        if end in SCALES and f"{stem}.weight" in tensors:
            result[stem] = fp8_matrix(tensors, stem, name, block or None)
    return result


def fp8_matrix(
    tensors: dict[str, Lazy],
    stem: str,
    scale_name: str,
    block: tuple[int, ...] | None,
    dynamic: bool = False,
) -> Fp8Matrix:
    """The matrix of one module; the shapes and types of its tensors are checked."""
    shape = tuple(tensors[f"{stem}.weight"].shape)
    if len(shape) != 2 or min(shape) < 1:
        raise ValueError(f"{stem}.weight has shape {shape}, expected two axes")
    codes = check_tensor(tensors, f"{stem}.weight", shape, "float8_e4m3fn")
    n, k = shape
    stored = tuple(tensors[scale_name].shape)
    scale = check_tensor(tensors, scale_name, stored, *FLOATS)
    if stored in ((), (1,), (1, 1)):
        return Fp8Matrix(stem, shape, codes, scale, (n, k), dynamic)
    if stored in ((n,), (n, 1)):
        return Fp8Matrix(stem, shape, codes, scale, (1, k), dynamic)
    expected = block and (-(-n // block[0]), -(-k // block[1]))
    if stored != expected:
        blocks = f" or {expected}, one for each block of {block}" if block else ""
        raise ValueError(f"{scale_name} has shape {stored}, expected one number, ({n}, 1){blocks}")
    return Fp8Matrix(stem, shape, codes, scale, tuple(block), dynamic)
