"""The inputs of products in int8, for what `fit` chose in integers."""

from collections.abc import Mapping

from ..codecs import Dynamic, Int
from ..core.codec import rounding_codec
from .plan import Plan


def round_inputs(plan: Plan, uses: Mapping | None, activations: str | None) -> Plan:
    """The plan in which inputs in int8 meet the integers of each weight that is only multiplied.

    Inputs are rounded as `Dynamic` does, each token in a range of its own (Dettmers et al., 2022).

    Args:
        plan: codecs by path, of which those of `Int` are wrapped.
        uses: how the model uses each weight.
        activations: "int8", or None: the plan as it is.

    Raises:
        ValueError: the uses are not known, or no product is of integers alone.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> params = {"table": jnp.ones((9, 4)), "w": jnp.ones((4, 2))}
        >>> ways = jm.uses(lambda p, i: p["table"][i] @ p["w"], params, jnp.zeros(3, int))
        >>> plan = jm.choose(params, {".*": jm.Int(8)}, uses=ways)
        >>> found = round_inputs(plan, ways, "int8")
        >>> type(found["w"]).__name__, found["w"].codec == found["table"] == jm.Int(8)
        ('Dynamic', True)
    """
    if activations is None:
        return plan
    if uses is None:
        raise ValueError(
            "activations in int8: give the inputs' shapes, which say what is multiplied"
        )
    wrapped = {
        path: Dynamic(codec) if _is_multiplied(path, codec, uses) else codec
        for path, codec in plan.items()
    }
    if wrapped == dict(plan):
        raise ValueError("activations in int8: no weight in integers is only multiplied")
    return Plan(wrapped, plan.axes)


def _is_multiplied(path, codec, uses):
    """Whether a weight of integers is only an operand of matrix products."""
    ways = uses.get(path, ())
    is_dot = all(way.op == "dot_general" for way in ways)
    return bool(ways) and is_dot and isinstance(rounding_codec(codec), Int)
