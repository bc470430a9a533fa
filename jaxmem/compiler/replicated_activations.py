"""replicated: the arrays that each of many devices has in full, from a compiled program's text."""

import dataclasses
from collections.abc import Iterator

from ..core.arguments import BYTES, takes
from . import hlo
from .cost_analysis import FREE, reads_all, source
from .memory_analysis import Memory


@dataclasses.dataclass(frozen=True)
class Whole:
    """An array that every device has in full for a time.

    `kind` is "gathered" (a weight gathered from its shards, as a layer's under `fsdp`),
    "rematerialised" (gathered only to be sharded along another axis) or "replicated" (activations
    of the whole batch, computed or gathered by each device: constrain their sharding).
    """

    kind: str
    source: str  # the operation's path in the traced function
    shape: tuple[int, ...]
    nbytes: int  # bytes of one such array
    times: int  # how many such arrays a run makes


@takes(least=BYTES)
def replicated(m: Memory, *, least: int = 2**20) -> list[Whole]:
    """The arrays of at least `least` bytes that each device has in full, largest first.

    Such an array is known by its shape, which is also in the program before partitioning.
    Arguments are left out: `placement` lists them.

    Raises:
        ValueError: the compiler gave up, so there is no text to read.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> from jax.sharding import PartitionSpec as P
        >>> x, w = jnp.ones((64, 32)), jnp.ones((32, 48))
        >>> w = jm.shard(w, jm.shardings(w, jm.mesh(fsdp=8), {"": P(None, "fsdp")}))
        >>> [(a.kind, a.shape) for a in replicated(jm.memory(jnp.matmul, x, w), least=1)]
        []
    """
    if m.text is None or m.program is None:
        raise ValueError(f"nothing was compiled for {m.device}, expected a program that fits")
    before, after = hlo.read(m.program), hlo.read(m.text)
    arguments = {key for op in before.computations[before.entry] for key in _argument_keys(op)}
    shapes = {_key(sides) for op in before.ops.values() for _, sides in hlo.dims(op.type)}
    shapes -= arguments
    counts: dict[Whole, int] = {}
    for computation, op, times in after.walk():
        kind = op.kind.removesuffix("-start")
        if kind in FREE or kind.endswith("-done"):
            continue
        for size, sides in zip((n for n, _ in hlo.shapes(op.type)), hlo.dims(op.type)):
            gathered = kind == "all-gather"
            if size < least or not (gathered or _key(sides[1]) in shapes):
                continue
            name = "replicated" if _key(sides[1]) in shapes else "gathered"
            if gathered and not reads_all(after, computation, op):
                name = "rematerialised"
            whole = Whole(name, source(op), tuple(sides[1]), size, 0)
            counts[whole] = counts.get(whole, 0) + times
    arrays = [dataclasses.replace(whole, times=times) for whole, times in counts.items()]
    return sorted(arrays, key=lambda w: -w.nbytes)


def _key(sides: list[int]) -> tuple[int, ...]:
    """A shape sorted by size, without ones: a compiler may transpose and squeeze."""
    return tuple(sorted(n for n in sides if n > 1))


def _argument_keys(op: hlo.Op) -> Iterator[tuple[int, ...]]:
    """The sorted shapes of an argument and of one layer of it; none if `op` is no argument."""
    if op.kind == "parameter":
        for _, sides in hlo.dims(op.type):
            yield _key(sides)
            yield _key(sides[1:])
