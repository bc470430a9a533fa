"""The layers of a Python loop, found in a jaxpr as operations that repeat, and run one by one."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax.extend.core as jex
import numpy as np

from .byte_counts import nbytes
from .replay import JaxprReplay

_PRODUCTS = (
    *("dot_general", "ragged_dot_general", "conv_general_dilated", "pallas_call"),
    "encoded_product",  # of kernels.dispatch
)


@dataclasses.dataclass(frozen=True)
class Segment:
    """Operations `start` to `stop` of a jaxpr; `parts` are consecutive segments of them, or none.

    Example:
        >>> Segment(0, 4, (Segment(0, 2), Segment(2, 4))).stop
        4
    """

    start: int
    stop: int
    parts: tuple["Segment", ...] = ()


def repeated_layers(jaxpr: Any) -> list[Segment]:
    """A segment for each layer; none if no operations with a matrix product repeat.

    Two operations are alike if their primitives and the shapes and dtypes of their operands are.
    Of all runs of operations that repeat with some period, the layers are those with the most
    products, and among these with the shortest period. A layer begins where the fewest bytes go
    from one layer to the next.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> def fn(ws, x):
        ...     for w in ws:
        ...         x = x + jnp.sin(x @ w)
        ...     return x.sum()
        >>> jaxpr = jax.make_jaxpr(fn)([jnp.eye(4)] * 3, jnp.ones((2, 4))).jaxpr
        >>> [(layer.start, layer.stop) for layer in repeated_layers(jaxpr)]
        [(0, 3), (3, 6), (6, 9)]
    """
    products = np.array([count_products(eqn) for eqn in jaxpr.eqns], int)
    kinds: dict[Any, int] = {}
    kind = np.array([kinds.setdefault(_kind(eqn), len(kinds)) for eqn in jaxpr.eqns], int)
    most, best = 0, None
    for period in range(1, len(kind) // 2 + 1):
        for start, stop in _runs(kind[:-period] == kind[period:]):
            count = int(products[start : stop + period].sum())
            if stop - start >= period and count > most:
                most, best = count, (start, stop + period, period)
    if best is None:
        return []
    start, stop, period = best
    bytes_across = _bytes_across(jaxpr)
    offsets = range(start, start + period)
    first = min(offsets, key=lambda i: bytes_across[np.arange(i, stop, period)].max())
    cuts = sorted({start, *range(first, stop, period), stop})
    return [Segment(*ends) for ends in itertools.pairwise(cuts)]


def run_segments(
    jaxpr: Any, consts: Any, args: Any, segments: list[Segment], wrap: Callable
) -> list:
    """The outputs of a jaxpr; each segment, and each part of one, runs as `wrap` of a function.

    `wrap` takes a function of a list of arrays that returns a list of arrays, and returns another,
    such as `jax.checkpoint` of it.
    """
    replay, last_use = JaxprReplay("allow"), _last_use(jaxpr)

    def run(segment: Segment, values: dict) -> None:
        eqns = jaxpr.eqns[segment.start : segment.stop]
        written = [v for eqn in eqns for v in eqn.outvars]
        read = [v for eqn in eqns for v in eqn.invars if not isinstance(v, jex.Literal)]
        inputs = list(dict.fromkeys(v for v in read if v not in set(written)))
        outputs = [v for v in written if last_use.get(v, -1) >= segment.stop]

        def body(arrays):
            local = dict(zip(inputs, arrays))
            for part in segment.parts:
                run(part, local)
            if not segment.parts:
                replay.run_equations(eqns, local)
            return [local[v] for v in outputs]

        values.update(zip(outputs, wrap(body)([values[v] for v in inputs])))

    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args)))
    done = 0
    for segment in segments:
        replay.run_equations(jaxpr.eqns[done : segment.start], values)
        run(segment, values)
        done = segment.stop
    replay.run_equations(jaxpr.eqns[done:], values)
    return [v.val if isinstance(v, jex.Literal) else values[v] for v in jaxpr.outvars]


def equations(eqns: Iterable[Any]) -> Iterator[Any]:
    """The operations of a jaxpr, each followed by those inside it."""
    for eqn in eqns:
        yield eqn
        for value in eqn.params.values():
            for inner in value if isinstance(value, tuple | list) else [value]:
                yield from equations(getattr(getattr(inner, "jaxpr", inner), "eqns", ()))


def count_products(eqn: Any) -> int:
    """The matrix products and convolutions in an operation, each body of a loop counted once."""
    return sum(inner.primitive.name in _PRODUCTS for inner in equations([eqn]))


def _kind(eqn: Any) -> tuple:
    """What two operations that are alike have in common."""
    return eqn.primitive.name, *(str(v.aval) for v in (*eqn.invars, *eqn.outvars))


def _runs(flags: np.ndarray) -> Iterator[tuple[int, int]]:
    """(start, stop) of each longest run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    yield from zip(edges[::2].tolist(), edges[1::2].tolist())


def _last_use(jaxpr: Any) -> dict:
    """{variable: the index of the last operation that reads it}, of outputs the number of all."""
    last = {v: i for i, eqn in enumerate(jaxpr.eqns) for v in _variables(eqn.invars)}
    return last | dict.fromkeys(_variables(jaxpr.outvars), len(jaxpr.eqns))


def _variables(values: Any) -> list:
    return [v for v in values if not isinstance(v, jex.Literal)]


def _bytes_across(jaxpr: Any) -> np.ndarray:
    """Bytes that were computed before each operation and are read by it or later."""
    change, last_use = np.zeros(len(jaxpr.eqns) + 2), _last_use(jaxpr)
    for i, eqn in enumerate(jaxpr.eqns):
        for v in eqn.outvars:
            if last_use.get(v, i) > i:
                size = nbytes(v.aval)
                change[i + 1] += size
                change[last_use[v] + 1] -= size
    return np.cumsum(change)
