"""Compressed-tensors: weights of a safetensors checkpoint, as llm-compressor writes them.

`pack-quantized`: codes of 4 or 8 bits, stored as code + 2^(bits−1), are packed into int32 words
along a row, the first code in the low bits; zero points are packed along a column.
`int-quantized`: codes are int8. Weights are (code − zero point) · scale, one scale for the matrix,
for each row, or for each group of `group_size` columns. `float-quantized`: codes are e4m3.
`nvfp4-pack-quantized`: codes are e2m1, as the module nvfp4 says.
"""

import jax.numpy as jnp
import numpy as np

from ..core.lazy import Lazy
from .compressed_tensors_schemes import Scheme, check_computed, is_nvfp4, scheme_of, schemes
from .fp8 import fp8_matrix
from .nvfp4 import nvfp4_matrix
from .quantized_matrix import (
    IntegerMatrix,
    QuantizedMatrix,
    check_tensor,
    group_order,
    unpacked,
)


def read(
    tensors: dict[str, Lazy], config: dict
) -> tuple[dict[str, Lazy], dict[str, QuantizedMatrix]]:
    """(the tensors that are not quantized, the matrices by the names of their modules).

    `tensors` has the tensors of the checkpoint by name, `config` is its `quantization_config`.

    Raises:
        ValueError: a method or format that is not read, or tensors that do not belong together.
    """
    among = schemes(config)
    dense, matrices = {}, {}
    for name, tensor in tensors.items():
        stem, _, suffix = name.rpartition(".")
        if suffix == "weight_packed" or (suffix == "weight" and f"{stem}.weight_scale" in tensors):
            matrices[stem] = _matrix(tensors, stem, scheme_of(stem, among))
        elif not suffix.startswith("weight_"):
            dense[name] = tensor
    return dense, matrices


def _matrix(tensors: dict[str, Lazy], stem: str, scheme: Scheme) -> QuantizedMatrix:
    """The quantized weight of a module, of integers or of floats of 8 or 4 bits."""
    check_computed(scheme, stem)
    if is_nvfp4(scheme):
        return nvfp4_matrix(tensors, stem)
    if scheme.type == "int":
        return _integers(tensors, stem, scheme)
    name = f"{stem}.weight_scale"
    return fp8_matrix(tensors, stem, name, scheme.block, scheme.rounds_inputs)


def _integers(tensors: dict[str, Lazy], stem: str, scheme: Scheme) -> IntegerMatrix:
    """The integers of a module; the shapes and types of its tensors are checked."""
    bits, packed = scheme.bits, tensors.get(f"{stem}.weight_packed")
    words = lambda length: -(-length * bits // 32)
    if packed is None:
        stored = tensors[f"{stem}.weight"]
        shape, expected = tuple(stored.shape), tuple(stored.shape)
        codes = lambda: _unsigned(stored.load(), bits, stem)
    else:
        stored, shape = packed, _packed_shape(tensors, stem)
        expected = (shape[0], words(shape[1])) if len(shape) == 2 else ()
        codes = lambda: unpacked(packed.load(), bits, shape[1])
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
            zero_points = lambda: unpacked(zeros.load().T, bits, shape[0]).T
    group, place = -(-shape[1] // groups), _order(tensors, stem, shape[1], groups)
    ordered = codes if place is None else lambda: np.ascontiguousarray(codes()[:, place])
    options = {"order": place, "dynamic": scheme.rounds_inputs}
    return IntegerMatrix(stem, shape, bits, group, ordered, scale.load, zero_points, **options)


def _order(tensors: dict[str, Lazy], stem: str, k: int, groups: int) -> np.ndarray | None:
    """The inputs (k,) in the order of their groups; None if they are so, or without groups."""
    name = f"{stem}.weight_g_idx"
    if name not in tensors:
        return None
    g_idx = check_tensor(tensors, name, (k,), "int32", "int64").load()
    return None if (g_idx == -1).all() else group_order(g_idx, -(-k // groups), name)


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
