"""apply_rounded: params + updates, each param in its own form, right on average."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ..codecs.integer import IntArray
from ..core.arguments import OPTIONAL_TREE, shown, takes
from .float32_state import is_trained_whole
from .int8_weights import updated_int8
from .split_leaf import Split, split_weight
from .stochastic_rounding import PARAM_SEEDS_PER_STEP, SEED, stochastic_round


@takes(params=OPTIONAL_TREE, step=SEED)
def apply_rounded(params: Any, updates: Any, step: Array | int) -> Any:
    """`params + updates`, each in the form of the param, rounded stochastically where it rounds.

    A bfloat16 sum is rounded to bfloat16, so that an update far below one step between neighbours
    still counts, on average. A `Split` weight (see `split_weights`) is rounded to about 24 bits, an
    `Int(8)` weight to int8, with a new scale where its largest weight needs one. Their updates are
    arrays, as for `jm.decode(params)`. `step`, the number of the training step, seeds the random
    bits.

    Raises:
        ValueError: the updates have another structure than the params.
        NotImplementedError: a weight is in integers of other than 8 bits, or with zero points.

    Example:
        >>> import jax.numpy as jnp
        >>> params, updates = {"w": jnp.ones(10_000, jnp.bfloat16)}, {"w": jnp.full(10_000, 1e-3)}
        >>> mean = lambda tree: float(tree["w"].astype(jnp.float32).mean())
        >>> mean({"w": params["w"] + updates["w"].astype(jnp.bfloat16)})  # rounded to nearest
        1.0
        >>> abs(mean(apply_rounded(params, updates, step=1)) - 1.001) < 1e-4
        True
    """
    leaves, tree = jax.tree.flatten(params, is_leaf=is_trained_whole)
    if jax.tree.structure(updates) != tree:
        raise ValueError(
            f"updates are {shown(updates)}, expected a tree of the structure of the params"
        )
    pairs = zip(leaves, tree.flatten_up_to(updates))
    new = [_sum(x, u, step * PARAM_SEEDS_PER_STEP + i) for i, (x, u) in enumerate(pairs)]
    return tree.unflatten(new)


def _sum(param: Any, update: Array, seed: Array | int) -> Any:
    """One param plus its update, in the form of the param."""
    if isinstance(param, IntArray):
        return updated_int8(param, update, seed)
    if isinstance(param, Split):
        return split_weight(param.joined() + update.astype(jnp.float32), seed).astype(param.dtype)
    total = param.astype(jnp.float32) + update.astype(jnp.float32)
    if param.dtype == jnp.bfloat16:
        return stochastic_round(total, seed)
    return total.astype(param.dtype)
