"""with_alpha: alpha / r · u · v, the scale of LoRA, or alpha / √r, that of rsLoRA."""

import math

from ..core.arguments import takes


@takes()
def with_alpha(pairs: dict[str, dict], alpha: float, *, root: bool = False) -> dict[str, dict]:
    """The pairs with alpha / r in their `u`; with `root`, alpha / √r (Kalajdzievski, 2023).

    Call it inside the loss, before `attach`: then learning rates are those of LoRA and of rsLoRA
    elsewhere. Give its result to `merge` and `to_peft`. Without it the scale is 1, as if alpha
    were the rank.

    Raises:
        ValueError: `alpha` is not above 0, or a pair has no u: it is a bottleneck.

    Example:
        >>> import jax.numpy as jnp
        >>> pairs = {"kernel": {"u": jnp.ones((32, 4)), "v": jnp.ones((4, 64))}}
        >>> [float(with_alpha(pairs, 8, root=root)["kernel"]["u"][0, 0]) for root in (False, True)]
        [2.0, 4.0]
    """
    if not 0 < alpha < math.inf:
        raise ValueError(f"alpha is {alpha}, expected a number above 0")
    if missing := [path for path, pair in pairs.items() if "u" not in pair]:
        raise ValueError(f"the adapter of {missing[0]} has no u, expected a pair")
    scale = lambda rank: alpha / (math.sqrt(rank) if root else rank)
    return {
        path: pair | {"u": pair["u"] * scale(pair["u"].shape[-1])} for path, pair in pairs.items()
    }
