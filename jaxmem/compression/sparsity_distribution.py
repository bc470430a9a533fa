"""Densities of the weights, {path: density}, whose mean over all weights is a given density.

Score, pattern, distribution and solver are four independent values, which a plan combines:
`jm.Plan({path: jm.SparseGPT(jm.Bitmask(d)) for path, d in jm.erdos_renyi(params, 0.3).items()})`.
All layers of a stacked weight have one density. `jm.budget` distributes by measured loss instead.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..codecs import Bitmask, Coo, Csr, Smallest
from ..core.arguments import NUMBER, OPTIONAL_MAPPING, REGEX, TREE, takes
from ..core.fold import Fold
from ..core.leaf import is_dense_float
from ..core.paths import check_same_tree, is_whole, match, paths
from ..core.usage import summed_axes
from ..solvers.pruning_scores import magnitude

BINS = 4096  # histogram bins of the scores' logarithms, among which a threshold is found


@takes(density=NUMBER)
def sparse(density: float) -> Smallest:
    """The unstructured sparse codec that takes the fewest bytes for each weight at this density.

    `Bitmask` down to a few percent, then `Csr`, then `Coo` where fewer values stay than rows.

    Raises:
        ValueError: `density` is not between 0 and 1.

    Example:
        >>> import jax.numpy as jnp
        >>> type(sparse(0.02).encode(jnp.ones((512, 16)))).__name__
        'CsrArray'
    """
    return Smallest((Bitmask(density), Csr(density), Coo(density)))


@takes(params=TREE, density=NUMBER, where=REGEX)
def uniform(params: Any, density: float, where: str = ".*kernel") -> dict[str, float]:
    """The same density for every weight whose path the regex `where` matches.

    Example:
        >>> import jax.numpy as jnp
        >>> uniform({"up": {"kernel": jnp.ones((8, 8))}}, 0.5)
        {'up/kernel': 0.5}
    """
    return dict.fromkeys(_matching(params, density, where), density)


@takes(params=TREE, density=NUMBER, where=REGEX)
def erdos_renyi(
    params: Any, density: float, where: str = ".*kernel", uses: Mapping | None = None
) -> dict[str, float]:
    """Densities in proportion to (n + k) / (n · k) of each matrix (n, k), `density` on average.

    Small matrices stay denser. A weight whose density would be 1 or more stays dense and is left
    out of the result; the other weights share the rest. Params may be abstract. Mocanu et al.,
    2018.

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"a": {"kernel": jnp.ones((64, 64))}, "b": {"kernel": jnp.ones((256, 256))}}
        >>> {path: round(d, 3) for path, d in erdos_renyi(params, 0.1).items()}
        {'a/kernel': 0.34, 'b/kernel': 0.085}
    """
    leaves, sizes, raw = _leaves(params), {}, {}
    check_same_tree(leaves, uses=uses)
    for path, leaf in _matching(params, density, where).items():
        shape = jax.ShapeDtypeStruct(leaf.shape, jnp.float32)
        *_, n, k = jax.eval_shape(
            lambda w, p=path: Fold.from_weight(w, summed_axes(p, uses, leaves))[0], shape
        ).shape
        sizes[path], raw[path] = math.prod(leaf.shape), (n + k) / (n * k)
    left, total = density * sum(sizes.values()), dict(raw)
    while total:
        scale = left / sum(total[p] * sizes[p] for p in total)
        whole = [p for p in total if scale * total[p] >= 1]
        if not whole:
            return {path: scale * share for path, share in total.items()}
        for path in whole:
            left -= sizes[path]
            del total[path]
    return {}


@takes(params=TREE, density=NUMBER, where=REGEX, uses=OPTIONAL_MAPPING)
def together(
    params: Any,
    density: float,
    where: str = ".*kernel",
    *,
    score: Callable[[Array, Any], Array] = magnitude,
    stats: Mapping | None = None,
    uses: Mapping | None = None,
) -> dict[str, float]:
    """The density of each weight if one threshold on the scores is used for all weights.

    The threshold is found within 1 % of a score. A weight that would stay dense is left out of the
    result.

    Args:
        params: a tree of dense arrays.
        density: the share of all weights that stay, between 0 and 1.
        where: a regex of the paths of the weights that are pruned.
        score: takes a matrix (n, k) and the weight's stats, and gives scores (n, k): a function of
            `jm.solvers.pruning_scores`, or your own.
        stats: what `score` needs, {path: moments or gradient}.
        uses: the axes that each weight is summed over, as in `encode`.

    Raises:
        ValueError: a weight would lose all its values; `density` is not between 0 and 1.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> w = jax.random.normal(jax.random.key(0), (64, 64))
        >>> found = together({"a": {"kernel": w}, "b": {"kernel": 2 * w}}, 0.5)
        >>> found["a/kernel"] < 0.4 < 0.6 < found["b/kernel"], round(sum(found.values()) / 2, 2)
        (True, 0.5)
    """
    leaves, counts = _leaves(params), {}
    check_same_tree(leaves, uses=uses, stats=stats)
    for path, leaf in _matching(params, density, where).items():
        matrix = Fold.from_weight(jnp.asarray(leaf), summed_axes(path, uses, leaves))[0].astype(
            jnp.float32
        )
        counts[path] = np.zeros(BINS, np.int64)
        for at in np.ndindex(matrix.shape[:-2]):
            moments = jax.tree.map(lambda a: a[at], (stats or {}).get(path))  # noqa: B023
            counts[path] += np.asarray(_histogram(score(matrix[at], moments)))
    above = sum(counts.values())[::-1].cumsum()[::-1]
    threshold = int(np.abs(above - density * above[0]).argmin())
    densities = {path: float(c[threshold:].sum() / c.sum()) for path, c in counts.items()}
    empty = [path for path, d in densities.items() if d == 0]
    if empty:
        raise ValueError(f"{empty[0]} would lose all its weights at a density of {density}")
    return {path: d for path, d in densities.items() if d < 1}


@jax.jit
def _histogram(scores: Array) -> Array:
    """The number of scores in each of BINS equal steps of log₂, from 2^-32 to 2^32, (BINS,)."""
    place = (jnp.log2(jnp.maximum(scores, 2.0**-32)) + 32) * (BINS / 64)
    place = jnp.clip(place, 0, BINS - 1).astype(jnp.int32)
    return jnp.zeros(BINS, jnp.int32).at[place].add(1)


def _matching(params, density, where):
    """{path: leaf} of the weights that are pruned: the leaves of floats that `where` matches."""
    if not 0 < density < 1:
        raise ValueError(f"a density lies above 0 and below 1, got {density}")
    leaves = _leaves(params)
    return {p: leaves[p] for p in match(list(leaves), {where: True}) if is_dense_float(leaves[p])}


def _leaves(params):
    """{path: leaf} of all leaves."""
    return dict(zip(paths(params), jax.tree.leaves(params, is_leaf=is_whole)))
