"""replicated: what each of many devices holds whole, by name, from a compiled program's text."""

import dataclasses
from collections.abc import Iterator

from . import hlo
from .cost_analysis import FREE, reads_all, source
from .footprint import Memory


@dataclasses.dataclass(frozen=True)
class Whole:
    """An array that every device holds whole for a time.

    `kind` is "gathered" (a weight collected from its pieces, as a layer's under `fsdp`),
    "rematerialised" (collected only to be cut in another way) or "replicated" (activations of the
    whole batch, computed or collected by each device: constrain them).
    """

    kind: str
    source: str  # the operation's path in the traced function
    shape: tuple[int, ...]
    nbytes: int  # of one of them
    times: int


def replicated(m: Memory, *, least: int = 2**20) -> list[Whole]:
    """The arrays of at least `least` bytes that each device holds whole, largest first.

    Known by shape: what is whole has a shape that was in the program before it was partitioned.
    Arguments are not looked for: `placement` has them.

    Raises:
        ValueError: the compiler gave up, so that there is no text to read.

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
    given = {key for op in before.computations[before.entry] for key in _given(op)}
    shapes = {_key(sides) for op in before.ops.values() for _, sides in hlo.dims(op.type)} - given
    found: dict[Whole, int] = {}
    for computation, op, times in after.walk():
        kind = op.kind.removesuffix("-start")
        if kind in FREE or kind.endswith("-done"):
            continue
        for size, sides in zip((n for n, _ in hlo.shapes(op.type)), hlo.dims(op.type)):
            gathered = kind == "all-gather"
            if size < least or not (gathered or _key(sides[1]) in shapes):
                continue
            what = "replicated" if _key(sides[1]) in shapes else "gathered"
            if gathered and not reads_all(after, computation, op):
                what = "rematerialised"
            whole = Whole(what, source(op), tuple(sides[1]), size, 0)
            found[whole] = found.get(whole, 0) + times
    out = [dataclasses.replace(whole, times=times) for whole, times in found.items()]
    return sorted(out, key=lambda w: -w.nbytes)


def _key(sides: list[int]) -> tuple[int, ...]:
    """A shape, whatever the order of its axes."""
    return tuple(sorted(n for n in sides if n > 1))


def _given(op: hlo.Op) -> Iterator[tuple[int, ...]]:
    """The shapes of an argument, and of one layer of it."""
    if op.kind == "parameter":
        for _, sides in hlo.dims(op.type):
            yield _key(sides)
            yield _key(sides[1:])
