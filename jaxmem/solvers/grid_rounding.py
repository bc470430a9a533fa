"""round_on_grid: weights near those of a leaf, rounded to its grid for the outputs x · w.

A leaf's weights that are changed by little, as by a merged adapter, mostly round back to where they
were. So each weight is rounded given the errors of all others: by GPTQ (Frantar et al., 2022), then
by coordinate descent over codes and scales (Zhang et al., 2024: COMQ).
"""

from typing import Any

import jax.numpy as jnp
from jax import Array

from ..codecs import Affine, Codebook, Int
from ..codecs.codebook import LEVELS, CodebookArray
from ..codecs.float_offset import AffineArray
from ..codecs.integer import IntArray
from ..codecs.scaled import Scaled
from .coordinate_descent import row_losses
from .gptq import GPTQ
from .inverse_hessian import by_energy, inverse_factor, sweep


def grid_codec(leaf: Any) -> Scaled | None:
    """The codec whose scales and zeros a leaf has; None for leaves that have none.

    Example:
        >>> import jaxmem as jm
        >>> grid_codec(jm.Int(4, group=16).encode(jnp.ones((32, 8))))
        Int(bits=4, group=16, symmetric=True)
    """
    if isinstance(leaf, IntArray):
        return Int(leaf.bits, group=leaf.group, symmetric=leaf.zero is None)
    if isinstance(leaf, AffineArray) and leaf.low is not None:
        return Affine(leaf.bits, group=leaf.group)
    if isinstance(leaf, CodebookArray) and leaf.levels in LEVELS:
        return Codebook(leaf.levels, group=leaf.group)
    return None


def round_on_grid(
    leaf: Any, target: Array, gram: Array, *, damping: float = 0.01, turns: int = 4
) -> Any:
    """The unstacked leaf with other codes and scales, so that x · ŵ is nearest to x · target.

    Its form and bytes stay. Each row takes the better of two: the codes that it has and those of
    GPTQ on its scales, each after `turns` of coordinate descent, which refit the scales, too. The
    offsets of `Affine` stay, and with them its scales.

    Args:
        leaf: of `Int`, `Affine` or `Codebook`.
        target: (n, k) in f32.
        gram: E[x xᵀ] (k, k) of the inputs; the identity rounds to nearest.
        damping: this times the mean diagonal of `gram` is added to its diagonal.
        turns: how often scales are refitted, and each weight is rounded again given all others.

    Example:
        >>> import jax, jaxmem as jm
        >>> w, mix = (jax.random.normal(jax.random.key(i), (32, 32)) for i in range(2))
        >>> x = mix[:, :4] @ mix[:4]  # inputs of 4 directions
        >>> leaf = jm.Int(4).encode(w)
        >>> target = leaf.decode() + 0.1 * mix
        >>> merged = round_on_grid(leaf, target.T, x.T @ x / 32)
        >>> error = lambda leaf: float(((x @ (leaf.decode() - target)) ** 2).sum())
        >>> error(merged) < 0.3 * error(leaf), jm.nbytes(merged) == jm.nbytes(leaf)
        (True, True)
    """
    grid, k = grid_codec(leaf), target.shape[-1]
    scale, zero = leaf.scales().mT, _zeros(leaf)  # (n, groups)
    group = min(leaf.group, k)
    mean = jnp.trace(gram) / k
    damped = jnp.where(mean > 0, gram + damping * mean * jnp.eye(k), jnp.eye(k))
    order = by_energy(gram)

    def settle(rows, i, j, state):
        g = order[jnp.minimum(j, k - 1)] // group
        return grid.snap(rows[i], scale[:, g], None if zero is None else zero[:, g]), state

    swept = sweep(target.T[order], inverse_factor(gram[order][:, order], damping), settle)[0]
    solver = GPTQ(grid, damping=damping, turns=turns)
    descend = lambda rows: solver.descend(target, rows, scale, zero, gram, order)
    (old, old_scale), (new, new_scale) = map(descend, (leaf.rows(), swept[jnp.argsort(order)].T))
    better = row_losses(new - target, damped) < row_losses(old - target, damped)
    found, scale = (
        jnp.where(better[:, None], a, b) for a, b in ((new, old), (new_scale, old_scale))
    )
    return grid.round(found, scale.astype(leaf.scale.dtype), zero, leaf.fold, leaf.dtype)


def _zeros(leaf: Any) -> Array | None:
    """The zeros or offsets (n, groups) that the leaf's codec rounds with."""
    if isinstance(leaf, AffineArray):
        return leaf.low.mT.astype(jnp.float32)
    if not isinstance(leaf, IntArray):
        return None
    if leaf.zero is None:
        return jnp.full(leaf.scale.mT.shape, 1 << leaf.bits - 1)
    return leaf.zeros().mT + (128 if leaf.bits == 8 else 0)
