"""Compressed-tensors: integer weights of a safetensors checkpoint, as llm-compressor writes them.

`pack-quantized`: codes of 4 or 8 bits, stored as code + 2^(bits−1), are packed into int32 words
along a row, the first code in the low bits; zero points are packed along a column.
`int-quantized`: codes are int8. Weights are (code − zero point) · scale, one scale for each row
or for each group of `group_size` columns.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..codecs.dynamic import DynamicArray
from ..codecs.integer import IntArray
from ..codecs.packing import pack
from ..core.fold import Fold
from ..core.lazy import Lazy

FORMATS = ("pack-quantized", "int-quantized", "naive-quantized")


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
        ValueError: a format that is not one of `FORMATS`, or tensors that do not belong together.
    """
    method, form = config.get("quant_method"), config.get("format")
    if method != "compressed-tensors" or form not in FORMATS:
        raise ValueError(
            f"its weights are quantised by {method!r} as {form!r}, expected compressed-tensors as "
            f"{', '.join(FORMATS)}"
        )
    dense, coded = {}, {}
    for name, tensor in tensors.items():
        stem, _, suffix = name.rpartition(".")
        if suffix == "weight_g_idx":
            raise ValueError(f"{stem} has its columns in an order of their own, which is not read")
        if suffix == "weight_packed" or (suffix == "weight" and f"{stem}.weight_scale" in tensors):
            weight = _codes(tensors, stem, _scheme(config, stem))
            coded[f"{stem}.weight"] = weight
            dense[f"{stem}.weight"] = Lazy(
                weight.shape, np.dtype("f4"), lambda _, weight=weight: weight.decoded()
            )
        elif not suffix.startswith("weight_"):
            dense[name] = tensor
    return dense, coded


def _scheme(config: dict, module: str) -> dict:
    """The entry of `config_groups` whose targets match the name of a module."""
    for group in config["config_groups"].values():
        for target in group["targets"]:
            exact = target in ("Linear", module) or module.endswith(f".{target}")
            if exact or (target.startswith("re:") and _matches(target[3:], module)):
                return group
    raise ValueError(f"{module} is quantised, and no group of its config says how")


def _matches(pattern: str, module: str) -> bool:
    """Whether a regular expression matches the beginning of a module's name."""
    try:
        return re.match(pattern, module) is not None
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from error


def _codes(tensors: dict[str, Lazy], stem: str, scheme: dict) -> Codes:
    """The quantized weight of the module `stem`, with the shapes of its tensors checked."""
    weights, inputs = scheme["weights"], scheme.get("input_activations")
    bits, scale = weights["num_bits"], tensors.get(f"{stem}.weight_scale")
    if weights.get("type", "int") != "int" or bits not in (4, 8):
        raise ValueError(f"{stem} is of {bits} bits of {weights.get('type')}, expected int 4 or 8")
    packed, zeros = tensors.get(f"{stem}.weight_packed"), tensors.get(f"{stem}.weight_zero_point")
    if packed is None:
        shape = tuple(tensors[f"{stem}.weight"].shape)
        codes = lambda: _unsigned(tensors[f"{stem}.weight"].load(), bits)
    else:
        shape = tuple(map(int, tensors[f"{stem}.weight_shape"].load()))
        codes = lambda: _unpacked(packed.load(), bits, shape[1])
    words = lambda length: -(-length * bits // 32)
    if len(shape) != 2 or (packed is not None and packed.shape != (shape[0], words(shape[1]))):
        raise ValueError(f"{stem} of shape {shape} has other codes: {packed and packed.shape}")
    groups = scale.shape[1] if scale is not None and len(scale.shape) == 2 else 0
    if not groups or scale.shape[0] != shape[0] or shape[1] % groups:
        raise ValueError(f"{stem} of shape {shape} has scales of {scale and scale.shape}")
    zero_points = None
    if zeros is not None and not weights.get("symmetric", True):
        expected = (words(shape[0]), groups) if packed is not None else (shape[0], groups)
        if zeros.shape != expected:
            raise ValueError(f"{stem} has zero points of shape {zeros.shape}, expected {expected}")
        zero_points = lambda: _unsigned(zeros.load(), bits)
        if packed is not None:
            zero_points = lambda: _unpacked(zeros.load().T, bits, shape[0]).T
    return Codes(stem, shape, bits, scale, codes, zero_points, _is_dynamic(inputs, stem))


def _is_dynamic(inputs: dict | None, stem: str) -> bool:
    """Whether a scheme rounds the inputs of a module to int8 token by token."""
    if not inputs:
        return False
    if not inputs.get("dynamic") or inputs["num_bits"] != 8 or inputs.get("type") != "int":
        raise ValueError(f"{stem} has inputs rounded as {inputs}, expected dynamic int of 8 bits")
    return True


def _unsigned(codes: np.ndarray, bits: int) -> np.ndarray:
    """Signed int8 codes as uint8: code + 2^(bits − 1)."""
    return (codes.astype(np.int16) + 2 ** (bits - 1)).astype(np.uint8)


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
