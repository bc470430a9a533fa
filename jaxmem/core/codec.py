"""Codec: what encodes a weight, and what else this library asks of a codec."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jax import Array

from .arguments import Kind
from .fold import Fold


@runtime_checkable
class Codec(Protocol):
    """Encodes one weight. Only `encode` is required; `OptionalMembers` has the rest.

    A codec is a frozen dataclass, so that plans can compare, hash, print and save it. It keeps the
    codecs that it uses in fields, or in a tuple in a field: so this library finds them.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> @dataclasses.dataclass(frozen=True)
        ... class Clipped:
        ...     limit: float
        ...
        ...     def encode(self, w, axes=(-2,), stats=None):
        ...         return jm.Int(8).encode(jnp.clip(w, -self.limit, self.limit), axes)
        >>> isinstance(Clipped(1.0), Codec), needs_stats(Clipped(1.0))
        (True, False)
    """

    def encode(self, w: Any, axes: tuple[int, ...] = (-2,), stats: Any = None) -> Any:
        """The encoded leaf of `w`; an array where the codec keeps the weight.

        Args:
            w: the weight (*stack, ...) in floats, often a tracer. Inside a `Chain` it may be the
                leaf that another codec left: then return `w.map(self.encode)`.
            axes: the axes of `w` that its products sum over.
            stats: `jm.Moments` of the inputs of those products, or None.
        """


class OptionalMembers:
    """The attributes that a codec may also have, each with its value for a codec without it."""

    calibrated: bool = False  # whether `encode` cannot do without stats
    layers_together: bool = False  # whether `encode` looks at all layers of a stack at once
    independent_rows: bool = False  # whether each row of the matrix is encoded without the others
    ignores_zeros: bool = False  # whether `cut` of the leaf undoes rows and columns of zeros
    row_unit: int | None = None  # rows that are encoded together, without all other rows
    backward_codes: tuple[str, ...] = ()  # the values of `Fake.backward` that it can do
    codec: Codec | None = None  # the codec that this one wraps

    def row_encoder(self, w: Any, axes: tuple[int, ...], stats: Any) -> "RowEncoder | None":
        """What encodes some rows of one layer `w`, after what needs all of its rows or the stats.

        A codec without this method encodes some rows as it encodes a weight, if it has a
        `row_unit`.
        """

    def padded_encoder(self) -> "PaddedEncoder | None":
        """What encodes a matrix with zeros behind it, by a program that many shapes share.

        A codec whose `ignores_zeros` is true needs none.
        """

    def encode_by_slices(self, w: Any, axes: tuple[int, ...], stats: Any) -> Any:
        """The leaf of one layer, which is read some rows at a time by `scan_rows`.

        This is for a codec whose leaf has no rows of the matrix, such as `Coo`, and for one that
        ties the layers of a stack `w`. `w` is an array, a `Remainder` or a `StridedWeight`.
        """


class RowEncoder(NamedTuple):
    """Encodes some rows of a weight, whose other numbers are already known.

    A `Float("nvfp4")` needs the largest weight of a matrix, and a `GPTQ` the factor of a Gram
    matrix; then each of its rows is encoded by itself.
    """

    encode: Callable[[Any, Any], Any]  # (rows of a weight, index of their first row) -> their leaf
    unit: int = 1  # rows that are encoded together
    sequential: bool = False  # whether it settles one input after another: large blocks are faster


class PaddedEncoder(NamedTuple):
    """How a codec encodes a padded matrix.

    Columns are padded to a power of two, and then to a multiple of `unit`.
    """

    encode: Callable[[Any, Any], Any]  # (matrix (*stack, n, k), the number, traced) -> its leaf
    cut: Callable[[Any, Fold], Any]  # (that leaf with NumPy arrays, the fold) -> the weight's leaf
    number: Callable[[Fold], int] = lambda fold: fold.k  # what `encode` must know of the fold
    unit: int = 1


@runtime_checkable
class RoundingCodec(Codec, Protocol):
    """A codec that rounds each group of a row to a scale: `Int`, `Float`, `Codebook`, `Affine`.

    Shapes: matrix (*stack, n, k) f32; low, high, scale and zero (*stack, n, groups).
    """

    group: int | None  # weights of a row that share a scale; None: all of them

    def range(self, low: Array, high: Array) -> tuple[Array, Array | None]:
        """The scale and the zero of groups whose weights lie in [low, high]."""

    def round(self, matrix: Array, scale: Array, zero: Array | None, fold: Any, dtype: Any) -> Any:
        """The leaf with the nearest codes, by the given scales and zeros."""

    def snap(self, values: Array, scale: Array, zero: Array | None) -> Array:
        """The numbers in f32 that the nearest codes of `values` stand for."""


@runtime_checkable
class SolvingCodec(Codec, Protocol):
    """A codec that chooses the numbers of the codec that it wraps: the solvers."""

    codec: Codec

    def solve(self, matrix: Array, fold: Any, dtype: Any, stats: Any) -> Any:
        """The leaf of a matrix (n, k) in f32."""


def is_codec(x: Any) -> bool:
    """Whether `x` is a codec. A class is none, nor is a string, whose `encode` makes bytes.

    Example:
        >>> import jaxmem as jm
        >>> is_codec(jm.Int(4)), is_codec(jm.Int), is_codec("int4")
        (True, False, False)
    """
    return isinstance(x, Codec) and not isinstance(x, str | type)


CODEC = Kind("a codec, such as Int(4),", is_codec)
OPTIONAL_CODEC = Kind("a codec or None", lambda x: x is None or is_codec(x))
CODECS = Kind(
    "a tuple of codecs, such as (Int(4), Int(8)),",
    lambda x: isinstance(x, tuple | list) and all(map(is_codec, x)),
)


def needs_stats(codec: Codec) -> bool:
    """Whether a codec, or one inside it, cannot do without stats.

    Example:
        >>> import jaxmem as jm
        >>> needs_stats(jm.Search(jm.Int(4))), needs_stats(jm.Dynamic(jm.GPTQ(jm.Int(4))))
        (False, True)
    """
    return _member(codec, "calibrated") or any(map(needs_stats, _inside(codec)))


def ties_layers(codec: Codec) -> bool:
    """Whether a codec, or one inside it, looks at all layers of a stack together.

    Example:
        >>> import jaxmem as jm
        >>> ties_layers(jm.Int(4)), ties_layers(jm.Sum((jm.Shared(2), jm.LowRank(8))))
        (False, True)
    """
    return _member(codec, "layers_together") or any(map(ties_layers, _inside(codec)))


def has_independent_rows(codec: Codec) -> bool:
    """Whether a codec encodes each row of the matrix alone, so that a few rows can be tried.

    Example:
        >>> import jaxmem as jm
        >>> has_independent_rows(jm.Int(4)), has_independent_rows(jm.LowRank(8))
        (True, False)
    """
    return _member(codec, "independent_rows")


def ignores_zeros(codec: Codec) -> bool:
    """Whether zeros, at the ends of rows or as rows, change no bit of what the others become.

    The leaf of such a codec has `MatrixLeaf.cut`, which removes them again.

    Example:
        >>> import jaxmem as jm
        >>> ignores_zeros(jm.Int(4)), ignores_zeros(jm.KMeans(2))
        (True, False)
    """
    return _member(codec, "ignores_zeros")


def backward_codes(codec: Codec) -> tuple[str, ...]:
    """The values of `Fake.backward` for which a codec's product has codes to read.

    Example:
        >>> import jaxmem as jm
        >>> backward_codes(jm.Dynamic(jm.Int(8))), backward_codes(jm.Int(8))
        (('codes', 'int8'), ())
    """
    return _member(codec, "backward_codes")


def row_unit(codec: Codec) -> int | None:
    """How many rows of a matrix a codec encodes together, without the others; None: all of them.

    Example:
        >>> import jaxmem as jm
        >>> row_unit(jm.Int(4)), row_unit(jm.Blocks(0.5, block=(32, 32))), row_unit(jm.LowRank(8))
        (1, 32, None)
    """
    return getattr(codec, "row_unit", 1 if has_independent_rows(codec) else None)


def common_unit(*units: int | None) -> int | None:
    """The rows that are encoded together by codecs with these `row_unit`; None if one has none.

    Example:
        >>> common_unit(8, 12), common_unit(8, None)
        (24, None)
    """
    return None if None in units else math.lcm(*units)


def row_encoder(codec: Codec, w: Any, axes: tuple[int, ...], stats: Any) -> RowEncoder | None:
    """What encodes some rows of one layer `w` by a codec; None if all rows are encoded at once.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmem as jm
        >>> w = jax.random.normal(jax.random.key(0), (64, 32))
        >>> nvfp4 = jm.Float("nvfp4")
        >>> rows = row_encoder(nvfp4, w, (-2,), None).encode(w[:, :8], 0)
        >>> bool((rows.decode() == nvfp4.encode(w).decode()[:, :8]).all())
        True
    """
    own, unit = getattr(codec, "row_encoder", None), row_unit(codec)
    if own is not None:
        return own(w, axes, stats)
    return unit and RowEncoder(lambda rows, start: codec.encode(rows, axes, stats), unit)


def rounding_codec(codec: Codec) -> RoundingCodec | None:
    """The codec itself or the one inside it that rounds to scales; None where there is none.

    Example:
        >>> import jaxmem as jm
        >>> rounding_codec(jm.Search(jm.Int(4))) == jm.Int(4), rounding_codec(jm.LowRank(8))
        (True, None)
    """
    while codec is not None and not isinstance(codec, RoundingCodec):
        codec = _member(codec, "codec")
    return codec


def _member(codec: Any, name: str) -> Any:
    """An attribute of a codec, or its value in `OptionalMembers`."""
    return getattr(codec, name, getattr(OptionalMembers, name))


def _inside(codec: Any) -> Iterator[Any]:
    """The values in a codec's fields, or in a tuple: the codecs that it uses are among them."""
    if isinstance(codec, tuple):
        yield from codec
    elif dataclasses.is_dataclass(codec):
        yield from (getattr(codec, field.name) for field in dataclasses.fields(codec))
