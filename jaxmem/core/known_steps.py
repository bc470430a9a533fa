"""Step: an operation of a jaxpr, or a part of one, that runs on a dictionary of values."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax

from .replay import JaxprReplay

# They are fused into what reads their result, so that keeping it saves nothing but bytes.
_CHEAP = {
    *("broadcast_in_dim", "convert_element_type", "copy", "expand_dims", "iota", "reshape"),
    *("squeeze", "transpose"),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """What reads some values and writes others.

    - run: takes {variable: array}, and adds what it writes.
    - is_cheap: whether it moves or casts numbers, and computes none.
    - count: how many operations it stands for.
    """

    reads: tuple
    writes: tuple
    run: Callable[[dict], None]
    is_cheap: bool = False
    count: int = 1


@dataclasses.dataclass(frozen=True, eq=False)
class Stacked:
    """A variable that stands in no jaxpr: what each layer of a scan computed, stacked."""

    aval: Any


def is_literal(v: Any) -> bool:
    """Whether an operand of a jaxpr's operation is a number, and no variable."""
    return hasattr(v, "val")


def equation_step(eqn: Any) -> Step:
    """The step of one operation."""
    reads = tuple(v for v in eqn.invars if not is_literal(v))
    run = lambda values: JaxprReplay("allow").run_equations([eqn], values)
    return Step(reads, tuple(eqn.outvars), run, eqn.primitive.name in _CHEAP)


def without_cheap_results(steps: list[Step], wanted: set) -> tuple[list[Step], list[Step], list]:
    """(steps to run first, cheap ones to run again each time, variables to keep between).

    A cheap step runs again if it reads no more bytes than it writes. Steps that nothing needs are
    left out. `wanted` are the variables that are read later.
    """
    first, again, needed_first, kept = [], [], set(), []
    for step in reversed(steps):
        written = [v for v in step.writes if v in wanted]
        is_moved = step.is_cheap and _bytes(step.reads) <= _bytes(step.writes)
        if written and is_moved:
            again.append(step)
            wanted = wanted | {*step.reads}
        kept += [] if is_moved else written
        if (written and not is_moved) or needed_first & {*step.writes}:
            first.append(step)
            needed_first |= {*step.reads}
    return first[::-1], again[::-1], kept[::-1]


def _bytes(variables: tuple) -> int:
    bits = (math.prod(v.aval.shape) * jax.dtypes.itemsize_bits(v.aval.dtype) for v in variables)
    return -(-sum(bits) // 8)
