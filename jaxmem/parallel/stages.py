"""Stages: a function cut at its scan over layers into S equal runs of layers, and what follows."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Self

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import PartitionSpec as P

from ..core.lifting import around_scans, made_of
from .axes import ROWS

STAGE = "stage"  # the axis of the mesh


@dataclasses.dataclass(frozen=True)
class Stages:
    """The pieces of `fn(*held, batch)`, and its arguments as they go to the devices.

    Lists hold arrays of a flattened tree. What comes before the scan and after it, each device
    computes for itself where it needs it, from the arguments in `live`.
    """

    fn: Callable
    mesh: Any
    structure: Any  # of the arguments before the batch
    held: list[Array]  # those
    batches: Any  # (micro, rows of one, ...)
    one: Any  # shapes of a micro-batch on one device
    rows: tuple[str, ...]  # axes of the mesh that rows lie over
    xs: list[Array] = dataclasses.field(default_factory=list)  # the layers' own, stacked
    carry: list[Any] = dataclasses.field(default_factory=list)  # shapes of what stages hand on
    result: Any = None  # shapes of what `fn` makes of a micro-batch
    live: list[int] = dataclasses.field(default_factory=list)  # which of `held` are used as such

    @property
    def count(self) -> int:
        return self.mesh.shape[STAGE]

    @property
    def replicas(self) -> int:
        """Devices that share the rows."""
        return math.prod(self.mesh.shape[name] for name in self.rows)

    @property
    def rest(self) -> list[Array]:
        return [self.held[i] for i in self.live]

    @classmethod
    def of(cls, fn: Callable, mesh: Any, micro: int, args: tuple) -> Self:
        """Cuts `fn` for these arguments, of which the last is the batch.

        Raises:
            ValueError: as `pipelined`.
        """
        *before, batch = args
        held, structure = jax.tree.flatten(tuple(before))
        used = {name for name, size in mesh.shape.items() if size > 1}
        if STAGE not in mesh.shape or used - {STAGE, *ROWS}:
            raise ValueError(f"a pipeline runs over {STAGE} and {ROWS}, the mesh is {mesh.shape}")
        rows = tuple(name for name in ROWS if name in used)
        replicas = math.prod(mesh.shape[name] for name in rows)
        for x in jax.tree.leaves(batch):
            if micro < 1 or len(x) % (micro * replicas):
                shares = f"{micro} micro-batches, each over {replicas} devices"
                raise ValueError(f"{len(x)} rows do not divide into {shares}")
        # row i goes to micro-batch i mod M, so that a sharded batch stays where it is
        cut = lambda x: jnp.moveaxis(x.reshape(len(x) // micro, micro, *x.shape[1:]), 1, 0)
        batches = jax.tree.map(cut, batch)
        share = lambda x: jax.ShapeDtypeStruct((x.shape[1] // replicas, *x.shape[2:]), x.dtype)
        one = jax.tree.map(share, batches)
        held = [jnp.asarray(x) for x in held]
        return cls(fn, mesh, structure, held, batches, one, rows)._measured()

    def _measured(self) -> Self:
        """With the shapes that pass, and which arguments are used."""
        _, _, xs = self.opened(self.held, zeros(self.one))
        lengths = {len(x) for x in xs}
        if len(lengths) != 1 or min(lengths) % self.count:
            raise ValueError(f"{sorted(lengths)} layers do not divide over {self.count} stages")
        shapes = lambda *held: self.opened(held, zeros(self.one))[0]
        run = lambda *held: self.fn(*self.structure.unflatten(held), zeros(self.one))
        carry, result = (jax.eval_shape(f, *self.held) for f in (shapes, run))
        whole = dataclasses.replace(
            self, xs=xs, carry=carry, result=result, live=list(range(len(self.held)))
        )
        own = [jax.ShapeDtypeStruct((len(x) // self.count, *x.shape[1:]), x.dtype) for x in xs]

        def every_piece(*held):
            held, one, x = list(held), zeros(self.one), zeros(carry)
            return whole.stage(0, held, zeros(own), x, one), whole.tail(held, x, one)

        used = frozenset().union(*made_of(every_piece, *self.held))
        return dataclasses.replace(whole, live=sorted(used))

    def opened(self, held: Any, one: Any) -> tuple[list[Array], Callable, list[Array]]:
        """(what the first scan starts from, its body, what it runs over)."""

        def stop(body, init, xs, length, **how):
            raise _Reached(init, body, xs)

        try:
            around_scans(self.fn, _same, stop)(*self.structure.unflatten(held), one)
        except _Reached as reached:
            return reached.args
        raise ValueError("the function runs no scan, expected one over layers")

    def stage(self, at: Any, rest: list, xs: list, given: list, one: Any) -> list[Array]:
        """What stage `at` hands on: made by its layers of what it was given, or by the first."""
        start, body, _ = self.opened(self._full(rest), one)
        x = [jnp.where(at == 0, a, b) for a, b in zip(start, given)]
        out, ys = lax.scan(body, x, xs)
        if jax.tree.leaves(ys):
            raise ValueError("the scan over layers returns more than its carry")
        return out

    def tail(self, rest: list, out: list, one: Any) -> Any:
        """What `fn` makes of what comes out of the last layer."""
        passed = []

        def skip(body, init, xs, length, **how):
            if passed:
                return lax.scan(body, init, xs, length, **how)
            passed.append(True)
            return out, []

        held = self.structure.unflatten(self._full(rest))
        return around_scans(self.fn, _same, skip)(*held, one)

    def _full(self, rest: list) -> list[Array]:
        """All arguments, zeros for those that are not used."""
        there = dict(zip(self.live, rest))
        return [there[i] if i in there else zeros(x) for i, x in enumerate(self.held)]

    def run(self, fn: Callable, out_specs: Any) -> Any:
        """`fn(rest, xs, batches)` on each device."""
        over = lambda tree, spec: jax.tree.map(lambda _: spec, tree)
        given = (self.rest, self.xs, self.batches)
        specs = tuple(map(over, given, (P(), P(STAGE), P(None, self.rows or None))))
        how = dict(mesh=self.mesh, in_specs=specs, out_specs=out_specs, check_vma=False)
        return jax.shard_map(fn, **how)(*given)


class _Reached(Exception):
    """The scan over layers, with what it starts from, its body and what it runs over."""


def zeros(tree: Any) -> Any:
    """Zeros of the shapes in a tree."""
    return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), tree)


def _same(body: Callable) -> Callable:
    return body
