"""SparseGPT: prune by w² / [H⁻¹]_jj as each input is settled; later inputs make up for the loss."""

import dataclasses
import itertools
from typing import Any, ClassVar

import jax.numpy as jnp
from jax import Array, lax

from ..calibration.statistics import Moments
from ..codecs import NM, Bitmask, Csr, Int
from ..codecs.scaled import Scaled, grouped
from ..codecs.sparse import Sparse, compressed, highest
from ..core.fold import Fold
from .obs import inverse_factor, sweep
from .pruning import Pruner
from .range_search import LEAST, best_range

BLOCK = 128  # inputs whose mask is chosen together, given all that was settled before them


@dataclasses.dataclass(frozen=True)
class SparseGPT(Pruner):
    """Optimal brain surgeon for all rows at once, by one factor of the inverse Gram matrix.

    `codec` is a sparse codec or a `Chain` of one and a codec of its values. Where that one rounds
    to scales (`Chain((NM(2, 4), Int(4)))`), a second sweep over the first's support zeroes and
    rounds together, so that each makes up for the other. Wants `stats` of moments "gram", and
    works on a layer at a time. Frantar and Alistarh, 2023.

    Raises:
        TypeError: a codec that is not sparse.
        ValueError: no stats, or only their diagonal.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmem as jm
        >>> draw = lambda *shape: jax.random.normal(jax.random.key(sum(shape)), shape)
        >>> w, x = draw(32, 8), draw(999, 16) @ draw(16, 32)  # inputs that go together
        >>> fed = jm.stats(lambda p, x: x @ p["w"], {"w": w}, [(x,)])["w"]
        >>> loss = lambda wrong: float(((x @ wrong) ** 2).sum())
        >>> error = lambda codec: loss(codec.encode(w, stats=fed).decode() - w)
        >>> error(SparseGPT(jm.NM(2, 4))) < 0.7 * error(jm.Wanda(jm.NM(2, 4)))
        True
    """

    damping: float = 0.01  # of the mean diagonal
    calibrated: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        rounds = any(isinstance(codec, Int | Scaled) for codec in self.values)
        if rounds and not isinstance(self.pattern, Bitmask | NM | Csr):
            raise TypeError(f"SparseGPT rounds values of Bitmask, NM or Csr, got {self.codec}")

    def solve(self, matrix: Array, fold: Fold, dtype: Any, stats: Moments | None) -> Any:
        k = matrix.shape[1]
        gram = jnp.eye(k) if stats is None else stats.second
        if gram.ndim == 1:
            raise ValueError('SparseGPT wants stats of moments="gram", got their diagonal')
        factor = inverse_factor(gram, self.damping)
        pruned, mask = prune(matrix, factor, self.pattern)
        leaf = self.pattern.hold(pruned, mask, fold, dtype)
        rest = self.values
        if rest and isinstance(rest[0], Int | Scaled):
            count, energy = leaf.values.shape[-1], jnp.diagonal(gram)
            settled = rounded(matrix, pruned, mask, count, factor, energy, rest[0])
            own = Fold.from_weight(settled[0], (-1,))[1]
            leaf = dataclasses.replace(leaf, values=rest[0].round(*settled, own, dtype))
            rest = rest[1:]
        for codec in rest:
            leaf = codec.encode(leaf)
        return leaf


def prune(matrix: Array, factor: Array, pattern: Sparse) -> tuple[Array, Array]:
    """The pruned matrix (n, k), its kept weights updated, and the mask; U = `factor`.

    `NM` chooses in each group as its turn comes, `Bitmask` and `Csr` in each run of `BLOCK`
    inputs, by what the weights have become and w² / U_jj², the loss of what is not yet settled;
    the others choose their whole mask first, by w² / [H⁻¹]_jj.
    """
    k = matrix.shape[1]
    if isinstance(pattern, NM):
        groups = pattern.mask(jnp.zeros((1, k))).shape[1] // pattern.m
        return adaptive(matrix, factor, [pattern.n] * groups, pattern.m, BLOCK // pattern.m)
    if isinstance(pattern, Bitmask | Csr):
        ends = [round(pattern.density * min(i, k)) for i in range(0, k + BLOCK, BLOCK)]
        counts = [b - a for a, b in itertools.pairwise(ends)]
        return adaptive(matrix, factor, counts, min(BLOCK, k), 1)
    mask = pattern.mask(matrix**2 / (factor * factor).sum(0)[None])
    return fixed(matrix, factor, mask), mask


def adaptive(
    matrix: Array, factor: Array, counts: list[int], size: int, groups: int
) -> tuple[Array, Array]:
    """The pruned matrix and its mask, `counts[g]` of the g-th run of `size` inputs in each row."""
    k = matrix.shape[1]
    diagonal = jnp.pad(jnp.diagonal(factor), (0, -k % (size * groups)), constant_values=1.0)
    counts = jnp.asarray(counts)

    def choose(rows, i, j, mask):
        here = (
            lax.dynamic_slice_in_dim(rows, i, size)
            / lax.dynamic_slice_in_dim(diagonal, j, size)[:, None]
        )
        there = highest((here * here).T, counts[jnp.minimum(j // size, len(counts) - 1)]).T
        return lax.dynamic_update_slice_in_dim(mask, there, j, 0)

    def settle(rows, i, j, mask):
        mask = lax.cond(i % size == 0, choose, lambda rows, i, j, mask: mask, rows, i, j, mask)
        return jnp.where(mask[j], rows[i], 0.0), mask

    first = jnp.zeros((len(diagonal), matrix.shape[0]), bool)
    pruned, mask = sweep(matrix.T, factor, settle, first, block=size * groups)
    return pruned.T, mask[:k].T


def fixed(matrix: Array, factor: Array, mask: Array) -> Array:
    """The matrix with zeros where the mask has them, and the rest updated in one sweep."""
    there = _by_input(mask)
    settle = lambda rows, i, j, _: (jnp.where(there[j], rows[i], 0.0), None)
    return sweep(matrix.T, factor, settle, block=BLOCK)[0].T


def rounded(
    matrix: Array, start: Array, mask: Array, count: int, factor: Array, energy: Array, codec: Any
) -> tuple[Array, Array, Array | None]:
    """(kept values (n, count), scale, zero) of the matrix, zeroed and rounded in one sweep.

    The scales are the best for the values of `start`, weighed by E[x²]: near what the sweep makes
    of them, and fixed before it begins.
    """
    held = lambda a: grouped(compressed(a, mask, count)[0], codec.group)
    weight = held(jnp.broadcast_to(energy[None], mask.shape))
    scale, zero = best_range(codec, held(start), weight + LEAST * energy.mean())
    group = jnp.maximum(jnp.cumsum(mask, -1) - 1, 0) // min(codec.group or count, count)
    own = lambda a: jnp.pad(
        jnp.take_along_axis(a, group, -1).T, ((0, -mask.shape[1] % BLOCK), (0, 0))
    )
    there = _by_input(mask)
    scales, zeros = own(scale), None if zero is None else own(zero)

    def settle(rows, i, j, _):
        row = codec.snap(rows[i], scales[j], None if zeros is None else zeros[j])
        return jnp.where(there[j], row, 0.0), None

    settled = sweep(matrix.T, factor, settle, block=BLOCK)[0].T
    return compressed(settled, mask, count)[0], scale, zero


def _by_input(a):
    """(n, k) as (k, n), filled up as `sweep` fills its last block."""
    return jnp.pad(a.T, ((0, -a.shape[1] % BLOCK), (0, 0)))
