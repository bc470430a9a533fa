"""techniques: {path: codecs} of every kind, so that one budget chooses among all."""

import math
import re
from collections.abc import Collection, Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from ..codecs import NM, Bitmask, Chain, Int, LowRank
from ..core.fold import matrix_shape
from ..core.leaf import is_encoded, nbytes
from ..core.paths import is_whole, paths
from ..core.usage import summed_axes
from ..solvers import GPTQ, QERA, Search, SparseGPT, Wanda
from .layer_errors import is_matrix

BITS = ((2, 32), (2, 64), (3, 64), (3, 128), (4, 64), (4, 128), (5, 64), (6, 64), (8, 128))
NEIGHBOURS = ((NM(2, 4), 3), (NM(2, 4), 4))  # and bits of what stays
MASKS = ((Bitmask(0.35), 4), (Bitmask(0.5), 4))
SHARES = (1 / 8, 1 / 4, 1 / 2)  # of a weight's numbers that two factors of 8 bits hold
MENDED = ((2, 64), (3, 64))  # bits and group of what a low rank corrects
CORRECTIONS = (1 / 64, 1 / 32)  # of a weight's numbers
Kind = Literal["int", "sparsity", "n:m", "rank"]
KINDS: tuple[Kind, ...] = get_args(Kind)


def techniques(
    params: Any,
    kinds: Collection[Kind] = KINDS,
    *,
    uses: Mapping | None = None,
    stats: Mapping | None = None,
) -> dict[str, tuple]:
    """The candidates of some kinds that each matrix can take, for `budget(candidates=...)`.

    Integers of 2 to 8 bits ("int"), unstructured ("sparsity") and "n:m" patterns with integers for
    what stays, and low rank, alone and beside integers ("rank"). Each by the best solver that the
    weight's `stats` allow: GPTQ, SparseGPT and QERA with Gram matrices, Wanda and a weighted search
    with their diagonal, a search without. What a weight cannot take (groups that do not divide,
    ranks that save nothing) or what is not smaller than it is left out; params may be abstract.
    Give `budget` the same `uses` and `stats`.

    Raises:
        ValueError: a kind that is not there.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> params = {"w": jnp.ones((64, 64)), "odd": jnp.ones((63, 64)), "bias": jnp.ones(64)}
        >>> found = techniques(params)
        >>> {path: len(codecs) for path, codecs in found.items()}
        {'odd': 14, 'w': 16}
        >>> print(found["w"][-1])
        Chain(codecs=(LowRank(rank=16), Int(bits=8, group=None, symmetric=True)))
    """
    if not kinds or not set(kinds) <= set(KINDS):
        raise ValueError(f"the kinds are {list(kinds)}, expected some of {', '.join(KINDS)}")
    found = {}
    for path, leaf in zip(paths(params), jax.tree.leaves(params, is_leaf=is_whole)):
        floats = not is_encoded(leaf) and jnp.issubdtype(leaf.dtype, jnp.floating)
        if not floats or not is_matrix(leaf, path, uses):
            continue
        shape = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        axes = summed_axes(path, uses)
        given = _all(kinds, shape, axes, (stats or {}).get(path))
        able = tuple(c for c in given if _fits(c, shape, axes))
        if able:
            found[re.escape(path)] = able
    return found


def _all(kinds, shape, axes, moments):
    """Candidates of these kinds, whether or not the weight can take them."""
    *_, n, k = matrix_shape(shape, axes)
    gram = moments is not None and moments.second.ndim > moments.mean.ndim
    integer = lambda bits, group: Int(bits, group=group, symmetric=False)
    solved = lambda bits, group: Search(integer(bits, group))
    if gram:
        solved = lambda bits, group: GPTQ(Search(integer(bits, group)))
    keep = SparseGPT if gram else Wanda if moments is not None else lambda codec: codec
    rank = lambda share: max(1, math.floor(share * n * k / max(n + k, 1)))
    if "int" in kinds:
        yield from (solved(bits, group) for bits, group in BITS)
    for kind, patterns in (("n:m", NEIGHBOURS), ("sparsity", MASKS)):
        if kind in kinds:
            yield from (keep(Chain((pattern, integer(b, 64)))) for pattern, b in patterns)
    if "rank" in kinds:
        if moments is not None:
            yield from (QERA(solved(*how), rank(s)) for how in MENDED for s in CORRECTIONS)
        yield from (Chain((LowRank(rank(share)), Int(8))) for share in SHARES)


def _fits(codec, shape, axes) -> bool:
    try:
        return nbytes(jax.eval_shape(lambda w: codec.encode(w, axes), shape)) < nbytes(shape)
    except ValueError:  # this weight cannot
        return False
