"""freeze_v: LoRA-FA, w + u · v with a v that is drawn once and stays (Zhang et al., 2023).

The backward pass then needs v · x, which has r numbers a token, and not x.
"""

from typing import Any

from ..core.arguments import takes
from ..core.paths import split


@takes()
def freeze_v(pairs: dict[str, dict]) -> tuple[Any, Any]:
    """(the pairs without v, which are trained; the v alone), each with None for the other's arrays.

    `jm.merge(trained, frozen)` are the pairs again, for `attach` inside the loss.

    Raises:
        ValueError: no pair has a v.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmem as jm
        >>> pairs = jm.adapters.adapters(jax.random.key(0), {"kernel": jnp.ones((64, 32))}, 4)
        >>> trained, frozen = freeze_v(pairs)
        >>> jax.tree.map(jnp.shape, trained), jax.tree.map(jnp.shape, frozen)
        ({'kernel': {'u': (32, 4), 'v': None}}, {'kernel': {'u': None, 'v': (4, 64)}})
    """
    if not any("v" in pair for pair in pairs.values()):
        raise ValueError("no adapter has a v, expected pairs of jm.adapters.adapters")
    return split(pairs, lambda path: not path.endswith("/v"))
