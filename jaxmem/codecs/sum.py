"""Sum: w ≈ a + b, each part by its own codec; b encodes the error of a."""

import dataclasses
import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ..core.arguments import check_fields
from ..core.codec import (
    CODECS,
    RowEncoder,
    common_unit,
    has_independent_rows,
    row_encoder,
    row_unit,
)
from ..core.fold import Fold
from ..core.layer_encoding import encode_layer
from ..core.leaf import Encoded, is_encoded
from ..core.lifting import dot_general
from ..core.matrix_leaf import MatrixLeaf
from ..core.remainder import Remainder


@dataclasses.dataclass(frozen=True)
class Sum:
    """`Sum((Int(4), LowRank(8)))`: 4-bit codes, and the 8 largest singular values of their error.

    Each codec encodes the error of the codecs before it. The bytes are the sum of the parts' bytes,
    and a product is the sum of their products, in f32. Yao et al., 2023 (ZeroQuant-V2).

    Raises:
        ValueError: there are fewer than two codecs.

    Example:
        >>> import jax, jaxmem as jm
        >>> w = jax.random.normal(jax.random.key(0), (64, 64))
        >>> error = lambda codec: float(abs(codec.encode(w).decode() - w).max())
        >>> error(jm.Sum((jm.Int(4), jm.Int(4)))) < error(jm.Int(4)) / 10
        True
    """

    codecs: tuple

    def __post_init__(self):
        check_fields(self, codecs=CODECS)
        if len(self.codecs) < 2:
            raise ValueError(f"Sum takes at least two codecs, got {len(self.codecs)}")
        object.__setattr__(self, "codecs", tuple(self.codecs))

    @property
    def independent_rows(self) -> bool:
        return all(map(has_independent_rows, self.codecs))

    def row_encoder(self, w, axes, stats):
        """Encodes some rows, if all parts but the first one do; the first one may be whole."""
        first, *rest = self.codecs
        if common_unit(*map(row_unit, rest)) is None:
            return None
        encoders = [row_encoder(codec, w, axes, stats) for codec in self.codecs]
        whole = None if encoders[0] else encode_layer(first, w, axes, stats)
        if not (encoders[0] or isinstance(whole, MatrixLeaf)):
            return None

        def encode(rows, start):
            parts, error = [], rows.astype(jnp.float32)
            for encoder in encoders:
                if encoder is None:
                    matrix, fold = Fold.from_weight(rows, axes)
                    part, dense = whole, fold.unfold(whole.slice_rows(start, len(matrix)).rows())
                else:
                    part = encoder.encode(error.astype(w.dtype), start)
                    dense = part.astype(jnp.float32).decode()
                error = error - dense
                parts.append(part)
            return SumArray(tuple(parts))

        used = [encoder for encoder in encoders if encoder]
        unit = common_unit(*(encoder.unit for encoder in used))
        return RowEncoder(encode, unit, any(encoder.sequential for encoder in used))

    def encode_by_slices(self, w, axes, stats):
        """Encodes one part after another; the error of those before is read by rows."""
        parts = (encode_layer(self.codecs[0], w, axes, stats),)
        for codec in self.codecs[1:]:
            error = Remainder(w, parts, axes, jnp.dtype(w.dtype))
            parts += (encode_layer(codec, error, axes, stats),)
        return SumArray(parts)

    def encode(self, w: Any, axes: tuple[int, ...] = (-2,), stats: Any = None) -> "SumArray":
        if is_encoded(w):
            return w.map(self.encode)
        parts, error = [], jnp.asarray(w).astype(jnp.float32)
        for codec in self.codecs:
            part = codec.encode(error.astype(w.dtype), axes, stats)
            error = error - part.astype(jnp.float32).decode()
            parts.append(part)
        return SumArray(tuple(parts))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SumArray(Encoded):
    """Encoded parts of one shape and dtype; the leaf stands for their sum."""

    parts: tuple

    shape = property(lambda self: self.parts[0].shape)
    dtype = property(lambda self: self.parts[0].dtype)
    stack = property(lambda self: min((p.stack for p in self.parts), key=len))
    rounds_inputs = property(lambda self: any(p.rounds_inputs for p in self.parts))

    def decode(self):
        return self._sum(p.astype(jnp.float32).decode() for p in self.parts).astype(self.dtype)

    def astype(self, dtype):
        return SumArray(tuple(p.astype(dtype) for p in self.parts))

    def dot(self, x, dims, preferred_element_type=None, precision=None):
        options = dict(precision=precision, preferred_element_type=jnp.float32)
        y = self._sum(dot_general(x, p, dims, **options) for p in self.parts)
        return y.astype(preferred_element_type or jnp.promote_types(x.dtype, self.dtype))

    def take(self, rows):
        taken = [p.astype(jnp.float32).take(rows) for p in self.parts]
        missing = any(row is NotImplemented for row in taken)
        return NotImplemented if missing else self._sum(taken).astype(self.dtype)

    def transpose(self, axes):
        return self._map_parts(lambda p: p.transpose(axes))

    def reshape(self, shape):
        return self._map_parts(lambda p: p.reshape(shape))

    def shard_shape(self, axis, parts):
        return self._map_parts(lambda p: p.shard_shape(axis, parts))

    def moved_layers(self):
        moved = [p.moved_layers() for p in self.parts]
        if any(m is NotImplemented for m in moved):
            return NotImplemented
        slices, layers = zip(*moved)
        return slices, lambda parts: SumArray(tuple(f(p) for f, p in zip(layers, parts)))

    def _map_parts(self, fn):
        """The leaf of fn(part), or NotImplemented if that is the result for one of the parts."""
        parts = tuple(fn(p) for p in self.parts)
        return NotImplemented if any(p is NotImplemented for p in parts) else SumArray(parts)

    def _sum(self, arrays) -> Array:
        return functools.reduce(operator.add, arrays)
