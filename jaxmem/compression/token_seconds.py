"""Seconds of a token: Σ seconds a byte · bytes over the weights that a row is multiplied by."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ..core.arguments import FUNCTION, NUMBER, check_fields
from ..core.byte_counts import nbytes, shape_of
from ..core.leaf import is_encoded
from ..core.paths import is_whole, paths
from .product_forms import Platform, form
from .product_speeds import Speeds, speeds

# Where memory alone decides, the ratio of two sums of bytes is the same on every device.
DEVICES: dict[Platform, str] = {"cpu": "cpu", "tpu": "tpu v5e:1x1", "gpu": "gpu h100"}


@dataclasses.dataclass(frozen=True)
class TokenSeconds:
    """How long products with one row take, by what `speeds` knows of a platform.

    A weight that is only looked up takes no time. What the products do not read, such as
    attention to a cache, is not in the sum.

    Args:
        speeds: seconds a byte by form.
        uses: how the model uses each weight, from `jm.uses`; None multiplies by each.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> seconds = on_platform("gpu", None)
        >>> dense = {"w": jnp.ones((64, 64))}
        >>> round(seconds.total(dense) / seconds.total(jm.encode(dense, {"w": jm.Int(8)})), 2)
        3.88
    """

    speeds: Speeds
    uses: Mapping | None

    def of(self, path: str, leaf: Any) -> float:
        """Seconds of a leaf, dense or encoded, abstract or not."""
        ops = {use.op for use in (self.uses or {}).get(path, ())}
        if ops == {"gather"}:
            return 0.0
        shape = leaf if is_encoded(leaf) else shape_of(leaf)
        dense = self.speeds.seconds_per_byte[form(jax.ShapeDtypeStruct((), jnp.float32))]
        return nbytes(shape) * (self.speeds.of(shape) or dense)

    def total(self, params: Any) -> float:
        """Seconds of all leaves of a tree."""
        leaves = jax.tree.leaves(params, is_leaf=is_whole)
        return sum(map(self.of, paths(params), leaves))


def on_platform(platform: Platform, uses: Mapping | None) -> TokenSeconds:
    """`TokenSeconds` of a platform; those of this CPU are measured at the first call."""
    return TokenSeconds(speeds(DEVICES[platform]), uses)


@dataclasses.dataclass(frozen=True)
class SecondsLimit:
    """A second limit of `budget`: the weights together take at most `limit` seconds.

    Args:
        of: seconds of a weight, as a function of its path and its leaf, dense or encoded, of
            shapes; such as its bytes times `Speeds.of(leaf)`.
        limit: the most seconds of all weights.

    Raises:
        TypeError: `of` is no function, `limit` no number.
        ValueError: `limit` is negative or NaN.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> by_bits = SecondsLimit(lambda path, leaf: leaf.bits / 1e6, 5e-6)
        >>> codecs = [jm.Int(4), jm.Int(8)]
        >>> plan = jm.budget({"w": jnp.eye(64)}, nbytes=9000, candidates=codecs, seconds=by_bits)
        >>> plan["w"].bits
        4
    """

    of: Callable[[str, Any], float]
    limit: float

    def __post_init__(self):
        check_fields(self, of=FUNCTION, limit=NUMBER)
        if not self.limit >= 0:
            raise ValueError(f"limit is {self.limit}, expected seconds of at least 0")


def seconds_limit(params: Any, options: Any, uses: Mapping | None) -> SecondsLimit | None:
    """The limit that `FitOptions(speed=...)` sets for dense params; None without it.

    Args:
        params: the dense params, lazy or abstract too.
        options: `FitOptions`.
        uses: how the model uses each weight.
    """
    if options.speed is None:
        return None
    seconds = on_platform(options.target, uses)
    return SecondsLimit(seconds.of, seconds.total(params) / options.speed)


def predicted_speed(params: Any, encoded: Any, options: Any, uses: Mapping | None) -> float | None:
    """How many times as fast as dense params the encoded ones are predicted to be.

    None where the options have no platform as `target`.
    """
    if options.target not in DEVICES:
        return None
    seconds = on_platform(options.target, uses)
    return seconds.total(params) / max(seconds.total(encoded), 1e-300)
