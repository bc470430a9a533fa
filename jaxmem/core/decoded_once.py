"""Weights of a recurrent cell: decoded before the loop over tokens, not in every step."""

from collections.abc import Callable
from typing import Any

from jax import lax

from .leaf import decode, is_encoded

# Bytes of the decoded weights together: a CPU core's cache, or a TPU's on-chip memory, holds them.
MOST_BYTES = {"cpu": 2**22, "tpu": 2**25}
LEAST_STEPS = 8

Scan = Callable[[list, list], list]  # (constants, carry and scanned stacks) -> outputs


def small_on(body: Any, const: list, length: int) -> tuple[str, ...]:
    """The platforms on which a scan is the loop of a recurrent cell whose weights are small.

    Its encoded weights are constants of the loop, and its body has no loop of its own: the body of
    a loop over the tokens of a model of many layers has one.
    """
    leaves = [x for x in const if is_encoded(x)]
    bytes_decoded = sum(x.size * x.dtype.itemsize for x in leaves)
    is_long = isinstance(length, int) and length >= LEAST_STEPS
    once = is_long and bool(leaves) and all(x.decoded_once for x in leaves)
    if not once or _has_loop(body):
        return ()
    return tuple(name for name, most in MOST_BYTES.items() if bytes_decoded <= most)


def decoded_first(
    platforms: tuple[str, ...], scan: Scan, as_stored: Scan, const: list, rest: list
) -> list:
    """`scan(decoded const, rest)` where one of `platforms` runs it, else `as_stored(const, rest)`.

    XLA's compiler for TPUs may leave arguments that a loop reads in main memory: each step then
    reads them again. What is computed before the loop, as decoded weights are, stays on the chip.
    """
    decoded = lambda const, rest: scan(decode(const), rest)
    branches = dict.fromkeys(platforms, decoded)
    return lax.platform_dependent(const, rest, **branches, default=as_stored)


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
