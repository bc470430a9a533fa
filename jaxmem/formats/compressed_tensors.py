"""Compressed-tensors: integer weights of a safetensors checkpoint, as llm-compressor writes them.

`pack-quantized`: codes of 4 or 8 bits, stored as code + 2^(bits−1), are packed into int32 words
along a row, the first code in the low bits; zero points are packed along a column.
`int-quantized`: codes are int8. Weights are (code − zero point) · scale, one scale for the matrix,
for each row, or for each group of `group_size` columns.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..codecs.dynamic_quantization import DynamicArray
from ..codecs.integer import IntArray
from ..codecs.packing import pack
from ..core.fold import Fold
from ..core.lazy import Lazy
from .quantization_config import Scheme, check_computed, scheme_of, schemes


@dataclasses.dataclass(frozen=True)
class Codes:
    """A weight (n, k) that is read when it is used; its codes and zero points are read as uint8."""

    name: str
    shape: tuple[int, int]
    bits: int
    scale: Lazy  # (n, groups)
    codes: Callable[[], np.ndarray]  # (n, k) uint8
    zeros: Callable[[], np.ndarray] | None  # (n, groups) uint8
    dynamic: bool  # whether its inputs are rounded to int8, token by token

    group = property(lambda self: -(-self.shape[1] // self.scale.shape[1]))

    def decoded(self) -> np.ndarray:
        """The weight in f32."""
        spread = lambda a: np.repeat(a.astype(np.float32), self.group, 1)[:, : self.shape[1]]
        zeros = 2 ** (self.bits - 1) if self.zeros is None else spread(self.zeros())
        return (self.codes().astype(np.float32) - zeros) * spread(self.scale.load())

    def leaf(self, fold: Fold, dtype: Any) -> Any:
        """The encoded leaf of the parameter whose axes `fold` maps to the rows and columns."""
        to_bytes = lambda a, axis: pack(jnp.asarray(a), self.bits, axis)
        zeros = None if self.zeros is None else to_bytes(np.ascontiguousarray(self.zeros().T), -1)
        scale = jnp.asarray(self.scale.load().T)
        codes, group = to_bytes(self.codes(), -2), min(self.group, self.shape[1])
        leaf = IntArray(codes, scale, zeros, self.bits, group, fold, jnp.dtype(dtype))
        return DynamicArray(leaf, None, "int8") if self.dynamic else leaf


def read(tensors: dict[str, Lazy], config: dict) -> tuple[dict[str, Lazy], dict[str, Codes]]:
    """(all weights as lazy tensors that are decoded when read, the quantized weights as `Codes`).

    `tensors` has the tensors of the checkpoint by name, `config` is its `quantization_config`.

    Raises:
        ValueError: a method or format that is not read, or tensors that do not belong together.
    """
    among = schemes(config)
    dense, coded = {}, {}
    for name, tensor in tensors.items():
        stem, _, suffix = name.rpartition(".")
        if suffix == "weight_g_idx":
            raise ValueError(f"{stem} has its columns in an order of their own, which is not read")
        if suffix == "weight_packed" or (suffix == "weight" and f"{stem}.weight_scale" in tensors):
            weight = _codes(tensors, stem, scheme_of(stem, among))
            coded[f"{stem}.weight"] = weight
            dense[f"{stem}.weight"] = Lazy(
                weight.shape, np.dtype("f4"), lambda _, weight=weight: weight.decoded()
            )
        elif not suffix.startswith("weight_"):
            dense[name] = tensor
    return dense, coded


def _codes(tensors: dict[str, Lazy], stem: str, scheme: Scheme) -> Codes:
    """The quantized weight of a module; the shapes and types of its tensors are checked."""
    check_computed(scheme, stem)
    bits, packed = scheme.bits, tensors.get(f"{stem}.weight_packed")
    words = lambda length: -(-length * bits // 32)
    if packed is None:
        stored = tensors[f"{stem}.weight"]
        shape, expected = tuple(stored.shape), tuple(stored.shape)
        codes = lambda: _unsigned(stored.load(), bits, stem)
    else:
        stored, shape = packed, _packed_shape(tensors, stem)
        expected = (shape[0], words(shape[1])) if len(shape) == 2 else ()
        codes = lambda: _unpacked(packed.load(), bits, shape[1])
    if len(shape) != 2 or min(shape) < 1 or tuple(stored.shape) != expected:
        raise ValueError(f"{stem} of shape {shape} has other codes: {stored.shape}")
    kinds = ("int32", "uint32") if packed is not None else ("int8",)
    if np.dtype(stored.dtype).name not in kinds:
        raise ValueError(f"{stem} has codes of {stored.dtype}, expected {kinds[0]}")
    scale = _scales(tensors, stem, shape, scheme)
    groups, zeros = scale.shape[1], tensors.get(f"{stem}.weight_zero_point")
    zero_points = None
    if not scheme.symmetric:
        if zeros is None:
            raise ValueError(f"{stem} is asymmetric, and has no weight_zero_point")
        if packed is None:
            zeros = _spread(zeros, shape[0])
        expected = (words(shape[0]), groups) if packed is not None else (shape[0], groups)
        if zeros.shape != expected:
            raise ValueError(f"{stem} has zero points of shape {zeros.shape}, expected {expected}")
        zero_points = lambda: _unsigned(zeros.load(), bits, stem)
        if packed is not None:
            zero_points = lambda: _unpacked(zeros.load().T, bits, shape[0]).T
    return Codes(stem, shape, bits, scale, codes, zero_points, scheme.rounds_inputs)


def _packed_shape(tensors: dict[str, Lazy], stem: str) -> tuple[int, ...]:
    """The shape of a packed weight, which a tensor of two integers holds."""
    tensor = tensors.get(f"{stem}.weight_shape")
    if tensor is None or tuple(tensor.shape) != (2,):
        raise ValueError(f"{stem} has packed codes, and no weight_shape of two numbers")
    return tuple(map(int, tensor.load()))


def _scales(tensors: dict[str, Lazy], stem: str, shape: tuple[int, ...], scheme: Scheme) -> Lazy:
    """The scales (n, groups) of a weight (n, k); one scale of the whole matrix is repeated."""
    stored = tensors.get(f"{stem}.weight_scale")
    if stored is None or not jnp.issubdtype(stored.dtype, jnp.floating):
        raise ValueError(f"{stem} has no weight_scale of floating-point numbers")
    scale = _spread(stored, shape[0])
    groups = scale.shape[1] if len(scale.shape) == 2 else 0
    if not groups or scale.shape[0] != shape[0] or shape[1] % groups:
        raise ValueError(f"{stem} of shape {shape} has scales of {stored.shape}")
    size = {"tensor": shape[1], "channel": shape[1]}.get(scheme.strategy or "", scheme.group_size)
    if size is not None and groups != -(-shape[1] // size):
        raise ValueError(
            f"{stem} of shape {shape} has scales of {stored.shape}, expected one for each "
            f"{size} columns"
        )
    return scale


def _spread(tensor: Lazy, rows: int) -> Lazy:
    """A tensor of one number, or of one for each row, as (rows, 1); others as they are."""
    shape = tuple(tensor.shape)
    if shape in ((), (1,), (1, 1)):
        one = lambda a: np.broadcast_to(a.reshape(1, 1), (rows, 1))
        return tensor.map(one, (rows, 1))
    return tensor.map(lambda a: a[:, None], (rows, 1)) if shape == (rows,) else tensor


def _unsigned(codes: np.ndarray, bits: int, stem: str) -> np.ndarray:
    """Signed int8 codes as uint8: code + 2^(bits − 1).

    Raises:
        ValueError: a code does not fit `bits` bits.
    """
    shifted = codes.astype(np.int16) + 2 ** (bits - 1)
    if shifted.size and (shifted.min() < 0 or shifted.max() >= 2**bits):
        raise ValueError(
            f"{stem} has codes from {codes.min()} to {codes.max()}, which are not of {bits} bits; "
            "its quantization_config names another scheme than it has"
        )
    return shifted.astype(np.uint8)


def _unpacked(words: np.ndarray, bits: int, length: int) -> np.ndarray:
    """Unpacks int32 words (n, ⌈length · bits / 32⌉) to uint8 codes (n, length).

    Example:
        >>> import numpy as np
        >>> _unpacked(np.array([[0x76543210]], np.int32), 4, 7)
        array([[0, 1, 2, 3, 4, 5, 6]], dtype=uint8)
    """
    data = np.ascontiguousarray(words, "<i4").view(np.uint8)
    if bits == 4:
        data = np.stack([data & 15, data >> 4], -1).reshape(len(data), -1)
    return data[:, :length]


def packed(codes: np.ndarray, bits: int) -> np.ndarray:
    """Packs uint8 codes (n, length) into int32 words; each row is padded with zeros.

    Example:
        >>> import numpy as np
        >>> hex(packed(np.arange(8, dtype=np.uint8)[None], 4)[0, 0])
        '0x76543210'
    """
    per = 32 // bits
    full = np.pad(codes, ((0, 0), (0, -codes.shape[1] % per)))
    if bits == 4:
        full = full[:, ::2] | full[:, 1::2] << 4
    return np.ascontiguousarray(full).view("<i4")
