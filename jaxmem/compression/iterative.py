"""iterated: a schedule of plans, each applied to the params that the plan before it left."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ..core.arguments import TREE, takes
from ..core.leaf import decode
from .encoding import encode


@takes(params=TREE)
def iterated(
    params: Any,
    plans: Iterable[Mapping[str, Any]],
    measure: Callable[[Any], Mapping] | None = None,
    uses: Mapping | None = None,
) -> Any:
    """The params encoded by the last plan, after all plans before it were applied in order.

    `measure(params)` gives the stats, or the gradients, of the params that a plan starts from; it
    is called again for each plan. A schedule is one expression, and its plans may have any score,
    pattern and distribution: `[jm.choose(params, {regex: jm.Wanda(jm.Bitmask(d))}) for d in (0.75,
    0.6, 0.5)]`. With one plan this is `encode`. Han et al., 2015 (iterative pruning).

    Raises:
        ValueError: no plan; what `encode` raises.

    Example:
        >>> import jax, jaxmem as jm
        >>> params = {"w": jax.random.normal(jax.random.key(0), (32, 8))}
        >>> x = jax.random.normal(jax.random.key(1), (64, 32))
        >>> measure = lambda p: jm.stats(lambda p, x: x @ p["w"], p, [(x,)])
        >>> plans = [{"w": jm.SparseGPT(jm.Bitmask(d))} for d in (0.75, 0.5)]
        >>> enc = iterated(params, plans, measure)
        >>> float((jm.decode(enc)["w"] != 0).mean())
        0.5
    """
    encoded = None
    for plan in plans:
        params = params if encoded is None else decode(encoded)
        encoded = encode(params, plan, uses, measure(params) if measure else None)
    if encoded is None:
        raise ValueError("iterated takes at least one plan, got none")
    return encoded
