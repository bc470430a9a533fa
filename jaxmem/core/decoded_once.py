"""Weights of a recurrent cell on a CPU: decoded before the loop over tokens, not in every step."""

from collections.abc import Callable
from typing import Any

from jax import lax

from .leaf import decode, is_encoded

MOST_BYTES = 2**22  # of the decoded weights together: a core's cache holds them
LEAST_STEPS = 8

Scan = Callable[[list, list], list]  # (constants, carry and scanned stacks) -> outputs


def is_small_cell(body: Any, const: list, length: int) -> bool:
    """Whether a scan is the loop of a recurrent cell whose weights, decoded, are small.

    Its encoded weights are constants of the loop, and its body has no loop of its own: the body of
    a loop over the tokens of a model of many layers has one.
    """
    leaves = [x for x in const if is_encoded(x)]
    bytes_decoded = sum(x.size * x.dtype.itemsize for x in leaves)
    is_long = isinstance(length, int) and length >= LEAST_STEPS
    once = is_long and bool(leaves) and all(x.decoded_once for x in leaves)
    return once and bytes_decoded <= MOST_BYTES and not _has_loop(body)


def decoded_on_a_cpu(scan: Scan, as_stored: Scan, const: list, rest: list) -> list:
    """`scan(decoded const, rest)` where a CPU runs it, else `as_stored(const, rest)`.

    Other platforms keep such weights on the chip, as they are stored.
    """
    decoded = lambda const, rest: scan(decode(const), rest)
    return lax.platform_dependent(const, rest, cpu=decoded, default=as_stored)


def _has_loop(jaxpr: Any) -> bool:
    """Whether a jaxpr, or one inside it, has a scan or another loop."""
    inner = (
        getattr(value, "jaxpr", value)
        for eqn in jaxpr.eqns
        for params in eqn.params.values()
        for value in (params if isinstance(params, list | tuple) else (params,))
    )
    loops = any(eqn.primitive.name in ("scan", "while") for eqn in jaxpr.eqns)
    return loops or any(_has_loop(x) for x in inner if hasattr(x, "eqns"))
