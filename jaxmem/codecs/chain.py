"""Chain: one codec after another, each on the float arrays in the leaf of the one before."""

import dataclasses
from typing import Any

from ..core.arguments import check_fields
from ..core.codec import (
    CODECS,
    common_unit,
    has_independent_rows,
    ignores_zeros,
    row_encoder,
    row_unit,
)
from ..core.layer_encoding import encode_layer
from ..core.padded import padded_encoder


@dataclasses.dataclass(frozen=True)
class Chain:
    """`Chain((LowRank(8), Int(8)))` factorises, then quantizes both factors.

    Raises:
        ValueError: there is no codec.
        TypeError: a codec before the last one leaves no float arrays to encode.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> leaf = jm.Chain((jm.LowRank(4), jm.Int(8))).encode(jnp.ones((64, 32)))
        >>> leaf.shape, jm.nbytes(leaf)
        ((64, 32), 456)
    """

    codecs: tuple

    def __post_init__(self):
        check_fields(self, codecs=CODECS)
        if not self.codecs:
            raise ValueError("Chain takes at least one codec, got none")
        object.__setattr__(self, "codecs", tuple(self.codecs))

    @property
    def independent_rows(self) -> bool:
        return all(map(has_independent_rows, self.codecs))

    @property
    def row_unit(self) -> int | None:
        return common_unit(*map(row_unit, self.codecs))

    def row_encoder(self, w, axes, stats):
        first, *rest = self.codecs
        inner, unit = row_encoder(first, w, axes, stats), common_unit(*map(row_unit, rest))
        if inner is None or unit is None:
            return None

        def encode(rows, start):
            leaf = inner.encode(rows, start)
            for codec in rest:
                leaf = codec.encode(leaf, axes)
            return leaf

        return inner._replace(encode=encode, unit=common_unit(inner.unit, unit))

    def padded_encoder(self):
        first, *rest = self.codecs
        inner = padded_encoder(first) if all(map(ignores_zeros, rest)) else None

        def encode(matrix, number):
            leaf = inner.encode(matrix, number)
            for codec in rest:
                leaf = codec.encode(leaf)
            return leaf

        return inner and inner._replace(encode=encode)

    def encode_by_slices(self, w, axes, stats):
        leaf = encode_layer(self.codecs[0], w, axes, stats)
        for codec in self.codecs[1:]:
            leaf = codec.encode(leaf, axes)
        return leaf

    def encode(self, w: Any, axes: tuple[int, ...] = (-2,), stats: Any = None) -> Any:
        for codec in self.codecs:
            w = codec.encode(w, axes, stats)
            stats = None  # the weights of the next codec have other inputs
        return w
