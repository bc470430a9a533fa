"""KQuant: w ≈ unit · scale code · code − unit · low code, as the K-quants of llama.cpp have it."""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from jax import Array

from ..codecs.double_quantized_scales import DoubleQuantArray
from ..codecs.float16_scales import divisor, float16_nearest
from ..codecs.float_offset import AffineArray
from ..codecs.integer import IntArray
from ..codecs.packing import pack
from ..codecs.scaled import Scaled, grouped, pack_rows, repeat_groups
from ..core.arguments import check_fields
from ..core.fold import Fold

SUPER_BLOCK = 256  # weights along a row that share the float16 units


class Form(NamedTuple):
    """What the bits of a code imply: the size of a group, and how its scale is stored."""

    group: int  # weights that share a scale code
    scale_bits: int
    has_low: bool  # whether a group also has a low code, of as many bits


FORMS = {
    2: Form(16, 4, True),
    3: Form(16, 6, False),
    4: Form(32, 6, True),
    5: Form(32, 6, True),
    6: Form(16, 8, False),
}


@dataclasses.dataclass(frozen=True)
class KQuant(Scaled):
    """Codes of `bits` bits (2 to 6) whose scales are integers: Q2_K, Q3_K, Q4_K, Q5_K and Q6_K.

    A super-block of 256 weights has a float16 unit. Each group in it, of 16 or 32 weights, has an
    integer that times the unit is its scale. With 2, 4 and 5 bits codes count upward from the
    group's smallest weight, which is an integer times a second unit; with 3 and 6 bits they are
    signed, and the unit may be negative. A weight takes 2.625, 3.4375, 4.5, 5.5 or 6.5625 bits.
    A GGUF file holds the leaf exactly if a row is a multiple of 256 weights. Gerganov et al., 2023
    (llama.cpp).

    Error: no bound for one group, since its scale is rounded to a multiple of the super-block's.
    A unit below 6e-8, float16's smallest number, becomes that number: weights of 1e-7 are not lost.

    Raises:
        ValueError: `bits` is outside 2 to 6.

    Example:
        >>> import jax, jaxmem as jm
        >>> w = jax.random.normal(jax.random.key(0), (256, 64))
        >>> 8 * jm.nbytes(KQuant(4).encode(w)) / w.size
        4.5
        >>> error = lambda codec: float(abs(codec.encode(w).decode() - w).mean())
        >>> error(KQuant(6)) < error(KQuant(4)) / 3 < error(KQuant(2)) / 9
        True
    """

    bits: int
    independent_rows: ClassVar[bool] = True

    def __post_init__(self):
        check_fields(self)
        if self.bits not in FORMS:
            raise ValueError(f"KQuant takes 2 to 6 bits, got {self.bits}")

    @property
    def group(self) -> int:
        """Weights along a row that share a scale."""
        return FORMS[self.bits].group

    def range(self, low, high):
        if FORMS[self.bits].has_low:
            return (high - low).clip(0) / (2**self.bits - 1), low
        # The weight of the largest size gets the code that has no counterpart of the other sign.
        largest = jnp.where(high > -low, -high, -low)
        return largest / 2 ** (self.bits - 1), None

    def round(self, matrix, scale, zero, fold, dtype):
        form, k = FORMS[self.bits], matrix.shape[-1]
        group = min(form.group, k) or 1
        parts = {"scale": _unsigned(scale, form) if form.has_low else _signed(scale, form)}
        if form.has_low:
            parts["low"] = _unsigned(-zero, form, sign=-1)
        decoded = {name: part.decode().mT for name, part in parts.items()}  # (*stack, n, groups)
        wide = {name: repeat_groups(a, group, k) for name, a in decoded.items()}
        codes = self._codes(matrix, wide["scale"], wide.get("low"))
        codes = pack_rows(codes if form.has_low else codes + 2 ** (self.bits - 1), self.bits)
        metadata = (self.bits, group, fold, jnp.dtype(dtype))
        if form.has_low:
            inner = AffineArray(codes, parts["scale"], *metadata, parts["low"])
        else:
            inner = IntArray(codes, parts["scale"], None, *metadata)
        return DoubleQuantArray(inner)

    def snap(self, values, scale, zero=None):
        near = self._codes(values, scale, zero) * scale
        return near if zero is None else near + zero

    def _codes(self, values: Array, scale: Array, low: Array | None) -> Array:
        """The nearest codes, in f32; those without a `low` are signed."""
        codes = jnp.round((values if low is None else values - low) / divisor(scale))
        if low is not None:
            return jnp.clip(codes, 0, 2**self.bits - 1)
        half = 2 ** (self.bits - 1)
        return jnp.clip(codes, -half, half - 1)


def _unsigned(values: Array, form: Form, sign: int = 1) -> AffineArray:
    """`sign` · values (*stack, n, groups), which are at least 0, as unsigned codes."""
    top = 2**form.scale_bits - 1
    unit = float16_nearest(_super_blocks(values, form).max(-1), float(top))
    codes = jnp.clip(jnp.round(values / _spread(unit, values, form)), 0, top)
    if sign > 0:
        codes = jnp.where(values > 0, codes.clip(1), codes)  # with 0 all weights would be equal
    fields, metadata = _packed(codes, form)
    return AffineArray(fields, sign * unit.mT, *metadata)


def _signed(values: Array, form: Form) -> IntArray:
    """Values (*stack, n, groups) as signed codes: the largest of a super-block is the lowest."""
    half, parts = 2 ** (form.scale_bits - 1), _super_blocks(values, form)
    largest = jnp.take_along_axis(parts, jnp.abs(parts).argmax(-1)[..., None], -1)[..., 0]
    unit = jnp.sign(-largest).astype(jnp.float16) * float16_nearest(jnp.abs(largest), float(half))
    exact = values / _spread(unit, values, form)
    away = jnp.sign(exact) * jnp.abs(jnp.round(exact)).clip(1)  # a scale of 0 would lose a group
    codes = jnp.clip(away, -half, half - 1)
    fields, (*metadata, dtype) = _packed(codes + half, form)
    return IntArray(fields, unit.mT, None, *metadata, dtype)


def _super_blocks(values: Array, form: Form) -> Array:
    """(*stack, n, groups) as (*stack, n, super-blocks, groups of one)."""
    return grouped(values, SUPER_BLOCK // form.group)


def _spread(unit: Array, values: Array, form: Form) -> Array:
    """The unit of each group in f32, 1 where it is 0."""
    return divisor(repeat_groups(unit, SUPER_BLOCK // form.group, values.shape[-1]))


def _packed(codes: Array, form: Form) -> tuple[Any, tuple]:
    """(the bit fields of codes (*stack, n, groups), bits, group, fold and dtype of their leaf)."""
    *_, n, groups = codes.shape
    fields = pack(codes.astype(jnp.uint8), form.scale_bits, -2)
    fold, per = Fold((n,), (groups,), (-1, -2)), min(SUPER_BLOCK // form.group, groups) or 1
    return fields, (form.scale_bits, per, fold, jnp.dtype("float32"))
