"""SparseGPT: prunes by w² / [H⁻¹]_jj one input after the other; later inputs compensate."""

import dataclasses
import functools
import itertools
from typing import Any, ClassVar

import jax.numpy as jnp
from jax import Array, lax

from ..calibration.statistics import Moments
from ..codecs import NM, Bitmask, Csr
from ..codecs.scaled import Scaled, grouped
from ..codecs.sparse import Sparse, compressed, highest
from ..core.fold import Fold, matrix_shape
from .inverse_hessian import inverse_factor, sweep
from .pruning import Pruner
from .range_search import LEAST_ENERGY, best_range

MASK_INPUTS = 128  # inputs whose mask is chosen together, after all earlier inputs are settled


@dataclasses.dataclass(frozen=True)
class SparseGPT(Pruner):
    """Optimal brain surgeon for all rows at once, with one factor of the inverse Gram matrix.

    `codec` is a sparse codec, or a `Chain` of one and a codec of its values. If that second codec
    rounds to scales, as in `Chain((NM(2, 4), Int(4)))`, a second sweep with the same mask prunes
    and rounds each input together, so that later inputs compensate for both errors. Needs `stats`
    with "gram" moments. Works on one layer at a time. Frantar and Alistarh, 2023.

    Raises:
        TypeError: `codec` is not sparse.
        ValueError: there are no stats, or only their diagonal.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmem as jm
        >>> draw = lambda *shape: jax.random.normal(jax.random.key(sum(shape)), shape)
        >>> w, x = draw(32, 8), draw(999, 16) @ draw(16, 32)  # correlated inputs
        >>> fed = jm.stats(lambda p, x: x @ p["w"], {"w": w}, [(x,)])["w"]
        >>> loss = lambda wrong: float(((x @ wrong) ** 2).sum())
        >>> error = lambda codec: loss(codec.encode(w, stats=fed).decode() - w)
        >>> error(SparseGPT(jm.NM(2, 4))) < 0.7 * error(jm.Wanda(jm.NM(2, 4)))
        True
    """

    damping: float = 0.01  # added to the diagonal of the Gram matrix, times its mean
    calibrated: ClassVar[bool] = True
    sequential: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        if not self.damping >= 0:
            raise ValueError(f"SparseGPT takes a damping of at least 0, got {self.damping}")
        rounds = any(isinstance(codec, Scaled) for codec in self.values)
        if rounds and not isinstance(self.pattern, Bitmask | NM | Csr):
            raise TypeError(f"SparseGPT rounds values of Bitmask, NM or Csr, got {self.codec}")

    def solve(self, matrix: Array, fold: Fold, dtype: Any, stats: Moments | None) -> Any:
        return self.row_solver(matrix, (-1,), stats)(matrix, fold, dtype)

    def row_solver(self, w, axes, stats):
        """`solve` of some rows, given the factor of the Gram matrix."""
        k = matrix_shape(w, axes)[-1]
        gram = jnp.eye(k) if stats is None else stats.second
        if gram.ndim == 1:
            raise ValueError('SparseGPT wants stats of moments="gram", got their diagonal')
        factor = inverse_factor(gram, self.damping)
        return functools.partial(self._solve, gram=gram, factor=factor)

    def _solve(self, matrix, fold, dtype, gram, factor):
        """The leaf of rows (n, k) in f32, given U (k, k)."""
        pruned, mask = prune(matrix, factor, self.pattern)
        leaf = self.pattern.encode_masked(pruned, mask, fold, dtype)
        rest = self.values
        if rest and isinstance(rest[0], Scaled):
            count, energy = leaf.values.shape[-1], jnp.diagonal(gram)
            settled = prune_and_round(matrix, pruned, mask, count, factor, energy, rest[0])
            value_fold = Fold.from_weight(settled[0], (-1,))[1]
            leaf = dataclasses.replace(leaf, values=rest[0].round(*settled, value_fold, dtype))
            rest = rest[1:]
        for codec in rest:
            leaf = codec.encode(leaf)
        return leaf


def prune(matrix: Array, factor: Array, pattern: Sparse) -> tuple[Array, Array]:
    """The pruned matrix (n, k) with its kept weights updated, and the mask; U = `factor`.

    `NM` chooses the mask of a group, `Bitmask` and `Csr` that of a run of `MASK_INPUTS` inputs,
    when the sweep arrives there: from the weights as updated so far, by w² / U_jj². The other
    patterns choose the whole mask before the sweep, by w² / [H⁻¹]_jj.
    """
    k = matrix.shape[1]
    if isinstance(pattern, NM):
        groups = pattern.mask(jnp.zeros((1, k))).shape[1] // pattern.m
        return prune_adaptively(
            matrix, factor, [pattern.n] * groups, pattern.m, MASK_INPUTS // pattern.m
        )
    if isinstance(pattern, Bitmask | Csr):
        ends = [round(pattern.density * min(i, k)) for i in range(0, k + MASK_INPUTS, MASK_INPUTS)]
        counts = [b - a for a, b in itertools.pairwise(ends)]
        return prune_adaptively(matrix, factor, counts, min(MASK_INPUTS, k), 1)
    mask = pattern.mask(matrix**2 / (factor * factor).sum(0)[None])
    return prune_by_mask(matrix, factor, mask), mask


def prune_adaptively(
    matrix: Array, factor: Array, counts: list[int], size: int, groups: int
) -> tuple[Array, Array]:
    """The pruned matrix (n, k) and its mask, which keeps `counts[g]` weights in run g of each row.

    A run has `size` inputs; `groups` runs are a block of the sweep. `factor` is U (k, k).
    """
    k = matrix.shape[1]
    diagonal = jnp.pad(jnp.diagonal(factor), (0, -k % (size * groups)), constant_values=1.0)
    counts = jnp.asarray(counts)

    def choose(rows, i, j, mask):
        run = lax.dynamic_slice_in_dim(rows, i, size)
        run_diagonal = lax.dynamic_slice_in_dim(diagonal, j, size)
        scores = jnp.square(run / run_diagonal[:, None])
        run_mask = highest(scores.T, counts[jnp.minimum(j // size, len(counts) - 1)]).T
        return lax.dynamic_update_slice_in_dim(mask, run_mask, j, 0)

    def settle(rows, i, j, mask):
        mask = lax.cond(i % size == 0, choose, lambda rows, i, j, mask: mask, rows, i, j, mask)
        return jnp.where(mask[j], rows[i], 0.0), mask

    first = jnp.zeros((len(diagonal), matrix.shape[0]), bool)
    pruned, mask = sweep(matrix.T, factor, settle, first, block=size * groups)
    return pruned.T, mask[:k].T


def prune_by_mask(matrix: Array, factor: Array, mask: Array) -> Array:
    """The matrix (n, k) with zeros outside the mask, and its kept weights updated in one sweep."""
    kept = _by_input(mask)
    settle = lambda rows, i, j, _: (jnp.where(kept[j], rows[i], 0.0), None)
    return sweep(matrix.T, factor, settle, block=MASK_INPUTS)[0].T


def prune_and_round(
    matrix: Array, start: Array, mask: Array, count: int, factor: Array, energy: Array, codec: Any
) -> tuple[Array, Array, Array | None]:
    """(kept values (n, count), scale, zero) of a matrix, pruned and rounded in one sweep.

    The scales are chosen before the sweep: the best for the values of `start`, which are close to
    those that the sweep will round.

    Args:
        matrix: the dense weights (n, k), f32.
        start: the pruned weights (n, k) of the first sweep.
        mask: (n, k), with `count` kept weights in each row.
        count: kept weights per row.
        factor: U (k, k) of `inverse_factor`.
        energy: E[x²] (k,), which weights the errors of `start`.
        codec: rounds the kept values to scales.
    """
    kept_groups = lambda a: grouped(compressed(a, mask, count)[0], codec.group)
    weight = kept_groups(jnp.broadcast_to(energy[None], mask.shape))
    scale, zero = best_range(codec, kept_groups(start), weight + LEAST_ENERGY * energy.mean())
    group = jnp.maximum(jnp.cumsum(mask, -1) - 1, 0) // min(codec.group or count, count)
    # (n, groups) as one number for each weight, (k, n)
    for_weights = lambda a: jnp.pad(
        jnp.take_along_axis(a, group, -1).T, ((0, -mask.shape[1] % MASK_INPUTS), (0, 0))
    )
    kept = _by_input(mask)
    scales, zeros = for_weights(scale), None if zero is None else for_weights(zero)

    def settle(rows, i, j, _):
        row = codec.snap(rows[i], scales[j], None if zeros is None else zeros[j])
        return jnp.where(kept[j], row, 0.0), None

    settled = sweep(matrix.T, factor, settle, block=MASK_INPUTS)[0].T
    return compressed(settled, mask, count)[0], scale, zero


def _by_input(a: Array) -> Array:
    """(n, k) as (k, n), padded with zeros to whole blocks of `sweep`."""
    return jnp.pad(a.T, ((0, -a.shape[1] % MASK_INPUTS), (0, 0)))
