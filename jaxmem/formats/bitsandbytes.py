"""bitsandbytes: NF4 and FP4 with absmax of blocks, themselves quantized or not, and LLM.int8.

A weight (n, k) of 4 bits is level · absmax of its block; blocks are runs of a row. Two codes are in
a byte, the first in the high bits. `quant_state` holds JSON text with the shape and the sizes of
blocks. With 8 bits a weight is code · SCB / 127, with one SCB a row. Dettmers et al., 2022, 2023.
"""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np

from ..codecs.codebook import TABLES, CodebookArray
from ..codecs.double_quantized_scales import DoubleQuantArray
from ..codecs.packing import pack
from ..codecs.scale_tables import NestedScales
from ..core.lazy import Lazy
from ..io.json_fields import JsonFields, parse_object
from .quantized_matrix import IntegerMatrix, QuantizedMatrix, check_tensor

_STATE = ".weight.quant_state.bitsandbytes__"
_PARTS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
_KINDS = ("nf4", "fp4")
ENDS = ("weight", "SCB", "weight_format", *(f"weight.{part}" for part in _PARTS))
ENDS += tuple(f"{_STATE[1:]}{kind}" for kind in _KINDS)


@dataclasses.dataclass(frozen=True)
class FourBitMatrix(QuantizedMatrix):
    """Codes of 4 bits, and the absmax of blocks; `state` has the fields of `quant_state`."""

    kind: str
    codes: Lazy
    parts: dict[str, Lazy]
    state: JsonFields

    def leaf(self, rows, fold, dtype):
        n, block = self.shape[0], self.state.integer("blocksize")
        data = np.ascontiguousarray(self.codes.load()).view(np.uint8).reshape(n, -1)
        codes = np.stack([data >> 4, data & 15], -1).reshape(n, -1)[rows]
        order = np.argsort(np.argsort(self.parts["quant_map"].load(), kind="stable"))
        levels = "nf4" if self.kind == "nf4" else "bnb_fp4"
        fields = pack(jnp.asarray(order.astype(np.uint8)[codes]), 4, -2)
        leaf = CodebookArray(fields, self._scales(rows), 4, block, fold, jnp.dtype(dtype), levels)
        return DoubleQuantArray(leaf) if "nested_absmax" in self.parts else leaf

    def _scales(self, rows):
        """The absmax (groups, rows) as an array or, if it is quantized, as `NestedScales`."""
        absmax = self.parts["absmax"].load().reshape(self.shape[0], -1)
        if "nested_absmax" not in self.parts:
            return jnp.asarray(absmax[rows].T)
        groups, block = absmax.shape[1], self.state.integer("nested_blocksize")
        offset = np.float32(self.state.number("nested_offset"))
        table, largest = (self.parts[f"nested_{part}"].load() for part in ("quant_map", "absmax"))
        first, in_turn = int(rows[0]), np.array_equal(rows, rows[0] + np.arange(len(rows)))
        if in_turn:
            begin, end = first * groups, (first + len(rows)) * groups
            largest = largest[begin // block : -(-end // block)]
            arrays = (np.ascontiguousarray(absmax[rows].T), table, largest, offset)
            return NestedScales(*map(jnp.asarray, arrays), block, begin % block)
        arrays = (np.ascontiguousarray(absmax.T), table, largest, offset)
        return NestedScales(*map(jnp.asarray, arrays), block, 0).decode()[:, rows]


def bitsandbytes(tensors: dict[str, Lazy], config: dict) -> dict[str, QuantizedMatrix]:
    """The matrices of a checkpoint of bitsandbytes by the names of their modules.

    Products take inputs as they are. LLM.int8 rounds them to 8 bits, except for outliers.

    Raises:
        ValueError: a table of levels or an order of codes that is not known here, or tensors that
            do not belong together.
    """
    result: dict[str, QuantizedMatrix] = {}
    for name in tensors:
        stem, _, end = name.rpartition(".")
        if end == "SCB":
            result[stem] = _of_8_bits(tensors, stem)
        elif f"{_STATE}nf4" in name or f"{_STATE}fp4" in name:
            stem, kind = name.split(_STATE)
            result[stem] = _of_4_bits(tensors, stem, kind)
    return result


def _of_8_bits(tensors: dict[str, Lazy], stem: str) -> IntegerMatrix:
    """The matrix of a module of LLM.int8."""
    shape = tuple(tensors[f"{stem}.weight"].shape) if f"{stem}.weight" in tensors else ()
    if len(shape) != 2 or min(shape) < 1:
        raise ValueError(f"{stem}.weight has shape {shape}, expected two axes")
    codes = check_tensor(tensors, f"{stem}.weight", shape, "int8")
    row_max = check_tensor(tensors, f"{stem}.SCB", shape[:1], "float32")
    form = tensors.get(f"{stem}.weight_format")
    if form is not None and form.load().any():
        raise ValueError(f"{stem}.weight_format is {form.load()}, expected 0: rows in their order")
    unsigned = lambda: codes.load().view(np.uint8) ^ 128
    scale = lambda: (row_max.load() / 127)[:, None]
    return IntegerMatrix(stem, shape, 8, shape[1], unsigned, scale)


def _of_4_bits(tensors: dict[str, Lazy], stem: str, kind: str) -> FourBitMatrix:
    """The matrix of a module of 4 bits; the shapes and types of its tensors are checked."""
    text = tensors[f"{stem}{_STATE}{kind}"].load().tobytes()
    state = JsonFields(parse_object(text, f"{stem}{_STATE}{kind}"), f"{stem}.quant_state.")
    shape, block = state.integers("shape"), state.integer("blocksize")
    if len(shape) != 2 or min(shape) < 1 or shape[1] % block:
        state.refuse("shape", f"rows, and columns that are a multiple of blocks of {block}")
    parts = {p: tensors[f"{stem}.weight.{p}"] for p in _PARTS if f"{stem}.weight.{p}" in tensors}
    codes, blocks = tensors.get(f"{stem}.weight"), shape[0] * shape[1] // block
    if codes is None:
        raise ValueError(f"{stem}.weight is missing")
    if np.dtype(codes.dtype).itemsize * math.prod(codes.shape) * 2 != math.prod(shape):
        raise ValueError(f"{stem}.weight has other codes than for a shape of {shape}")
    expected = {"absmax": (blocks,), "quant_map": (16,)}
    if "nested_absmax" in parts:
        nested = -(-blocks // state.integer("nested_blocksize"))
        expected |= {"nested_absmax": (nested,), "nested_quant_map": (256,)}
        state.number("nested_offset")
    for part, size in expected.items():
        is_code = part == "absmax" and "nested_absmax" in parts
        check_tensor(tensors, f"{stem}.weight.{part}", size, "uint8" if is_code else "float32")
    levels = np.sort(parts["quant_map"].load(), kind="stable")
    known = np.float32(TABLES["nf4" if kind == "nf4" else "bnb_fp4"])
    if not np.array_equal(levels, known):
        raise ValueError(f"{stem}.weight.quant_map holds other levels than those of {kind}")
    return FourBitMatrix(stem, shape, kind, codes, parts, state)
