"""The candidate codecs of each weight: `techniques` lists those of every kind for one budget."""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, get_args

import jax

from ..codecs import NM, Bitmask, Chain, Int, LowRank
from ..core.arguments import NAMES, OPTIONAL_MAPPING, TREE, takes
from ..core.byte_counts import nbytes
from ..core.codec import is_codec
from ..core.fold import matrix_shape
from ..core.lazy import is_lazy
from ..core.leaf import is_dense_float
from ..core.paths import check_same_tree, is_whole, match, paths
from ..core.usage import summed_axes
from ..solvers import GPTQ, QERA, Search, SparseGPT, Wanda

CANDIDATES = tuple(
    Int(b, group=g, symmetric=False) for b in range(3, 9) for g in (64, 128)
)  # of `budget`
# Two bits are offered where three take too many bytes: a table of tokens in 2 bits does more harm
# than its error says.
TWO_BITS = tuple(Int(2, group=group, symmetric=False) for group in (32, 64))
INTEGERS = ((2, 32), (2, 64), (3, 64), (3, 128), (4, 64), (4, 128), (5, 64), (6, 64), (8, 128))
NM_PATTERNS = ((NM(2, 4), 3), (NM(2, 4), 4))  # and the bits of the values that stay
UNSTRUCTURED_PATTERNS = ((Bitmask(0.35), 4), (Bitmask(0.5), 4))
LOW_RANK_SHARES = (1 / 8, 1 / 4, 1 / 2)  # numbers in two factors of 8 bits, per weight
CORRECTED_INTEGERS = ((2, 64), (3, 64))  # bits and group that a low rank corrects
CORRECTION_SHARES = (1 / 64, 1 / 32)  # numbers in the correction's factors, per weight
Kind = Literal["int", "sparsity", "n:m", "rank"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@takes(params=TREE, kinds=NAMES, uses=OPTIONAL_MAPPING, stats=OPTIONAL_MAPPING)
def techniques(
    params: Any,
    kinds: Collection[Kind] = KINDS,
    *,
    uses: Mapping | None = None,
    stats: Mapping | None = None,
) -> dict[str, tuple]:
    """The candidates of some kinds that each matrix can take, for `budget(candidates=...)`.

    The kinds are integers of 2 to 8 bits ("int"), unstructured ("sparsity") and "n:m" patterns with
    integers for the values that stay, and low rank, alone and as a correction of integers ("rank").
    Each candidate uses the best solver that the weight's `stats` allow: GPTQ, SparseGPT and QERA
    with Gram matrices; Wanda and a weighted search with their diagonal; a search without stats.
    A candidate is left out if the weight cannot take it (a group that does not divide, a rank that
    saves nothing) or if it is not smaller than the weight. Params may be abstract. Give `budget`
    the same `uses` and `stats`.

    Raises:
        ValueError: `kinds` is empty or has an unknown kind.

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
    candidates = {}
    leaves = dict(zip(paths(params), jax.tree.leaves(params, is_leaf=is_whole)))
    check_same_tree(leaves, uses=uses, stats=stats)
    for path, leaf in leaves.items():
        if not is_dense_float(leaf) or not is_matrix(leaf, path, uses):
            continue
        shape = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        axes = summed_axes(path, uses, leaves)
        codecs = _all(kinds, shape, axes, (stats or {}).get(path))
        smaller = tuple(c for c in codecs if _is_smaller(c, shape, axes))
        if smaller:
            candidates[re.escape(path)] = smaller
    return candidates


def _all(kinds, shape, axes, moments):
    """All candidates of these kinds, also those that the weight cannot take."""
    *_, n, k = matrix_shape(shape, axes)
    gram = moments is not None and moments.second.ndim > moments.mean.ndim
    integer = lambda bits, group: Int(bits, group=group, symmetric=False)
    solved = lambda bits, group: Search(integer(bits, group))
    if gram:
        solved = lambda bits, group: GPTQ(Search(integer(bits, group)))
    keep = SparseGPT if gram else Wanda if moments is not None else lambda codec: codec
    rank = lambda share: max(1, math.floor(share * n * k / max(n + k, 1)))
    if "int" in kinds:
        yield from (solved(bits, group) for bits, group in INTEGERS)
    for kind, patterns in (("n:m", NM_PATTERNS), ("sparsity", UNSTRUCTURED_PATTERNS)):
        if kind in kinds:
            yield from (keep(Chain((pattern, integer(b, 64)))) for pattern, b in patterns)
    if "rank" in kinds:
        if moments is not None:
            yield from (
                QERA(solved(*integer), rank(share))
                for integer in CORRECTED_INTEGERS
                for share in CORRECTION_SHARES
            )
        yield from (Chain((LowRank(rank(share)), Int(8))) for share in LOW_RANK_SHARES)


def _is_smaller(codec, shape, axes) -> bool:
    """Whether the weight can take the codec, and takes fewer bytes with it."""
    try:
        return nbytes(jax.eval_shape(lambda w: codec.encode(w, axes), shape)) < nbytes(shape)
    except ValueError:  # the weight cannot take the codec
        return False


def choices(leaves, candidates, uses) -> dict[str, list]:
    """{path: codecs} of the leaves that may be encoded: matrices, or those that a rule matches."""
    check_same_tree(leaves, uses=uses)
    able = {path: leaf for path, leaf in leaves.items() if is_dense_float(leaf)}
    if isinstance(candidates, Mapping):
        chosen = {p: c for p, c in match(list(leaves), dict(candidates)).items() if p in able}
    else:
        chosen = {p: candidates for p, leaf in able.items() if is_matrix(leaf, p, uses)}
    for path, codecs in chosen.items():
        if not isinstance(codecs, Sequence) or not codecs:
            raise ValueError(f"{path}: the candidates are {codecs!r}, expected a list of codecs")
        for codec in codecs:
            if not is_codec(codec):
                raise TypeError(f"{path}: {codec!r} is no codec, expected one such as Int(4)")
    return chosen


def is_matrix(leaf: Any, path: str, uses: Mapping | None) -> bool:
    """Whether each layer of a weight has two axes or more, and is multiplied or looked up."""
    multiplied = {"dot_general", "gather", "conv_general_dilated"}
    used = uses is None or any(use.op in multiplied for use in uses.get(path, ()))
    return used and leaf.ndim - (is_lazy(leaf) and leaf.stacked) >= 2
