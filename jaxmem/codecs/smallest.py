"""Smallest: of several codecs, the one that encodes the given weight in the fewest bytes."""

import dataclasses
from typing import Any

import jax

from ..core.arguments import check_fields
from ..core.byte_counts import nbytes
from ..core.codec import CODECS, Codec
from ..core.leaf import Encoded


@dataclasses.dataclass(frozen=True)
class Smallest:
    """Compares the codecs by shapes alone; of equals it takes the first.

    It is meant for codecs that store the same numbers in different layouts: `jm.sparse(density)` is
    the `Smallest` of the sparse codecs.

    Raises:
        ValueError: there is no codec.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmem as jm
        >>> w = jax.ShapeDtypeStruct((512, 512), jnp.float32)
        >>> form = lambda density: Smallest((jm.Bitmask(density), jm.Csr(density)))
        >>> [type(jax.eval_shape(form(d).encode, w)).__name__ for d in (0.5, 0.01)]
        ['BitmaskArray', 'CsrArray']
    """

    codecs: tuple

    def __post_init__(self):
        check_fields(self, codecs=CODECS)
        if not self.codecs:
            raise ValueError("Smallest takes at least one codec, got none")
        object.__setattr__(self, "codecs", tuple(self.codecs))

    def encode(self, w: Any, axes: tuple[int, ...] = (-2,), stats: Any = None) -> Encoded:
        return self.smallest(w, axes, stats).encode(w, axes, stats)

    def smallest(self, w: Any, axes: tuple[int, ...] = (-2,), stats: Any = None) -> Codec:
        """The codec that encodes `w`, an array or its shape and dtype, in the fewest bytes."""
        size = lambda codec: nbytes(jax.eval_shape(lambda w: codec.encode(w, axes, stats), w))
        return min(self.codecs, key=size)
