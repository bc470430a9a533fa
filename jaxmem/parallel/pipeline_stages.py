"""Stages: a function cut into S equal runs of the layers that it scans over, and the rest."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Self

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import PartitionSpec as P

from ..core.jaxpr_rewrites import argument_dependencies, around_scans
from .axes import ROWS

STAGE = "stage"  # the axis of the mesh


@dataclasses.dataclass(frozen=True)
class Stages:
    """The pieces of `fn(*arguments, batch)`, and its arguments as the devices get them.

    Lists hold the arrays of a flattened tree. The computations before the scan and after it are
    run by each device that needs their results, from the arguments in `live`.
    """

    fn: Callable
    mesh: Any
    structure: Any  # the tree structure of `arguments`
    arguments: list[Array]  # the arrays of all arguments before the batch
    batches: Any  # arrays (micro-batches, rows of a micro-batch, ...)
    one: Any  # shapes of a micro-batch on one device
    rows: tuple[str, ...]  # axes of the mesh that rows are divided over
    xs: list[Array] = dataclasses.field(default_factory=list)  # stacks that the scan runs over
    carry: list[Any] = dataclasses.field(default_factory=list)  # shapes that stages pass on
    result: Any = None  # shapes of the result of `fn` for a micro-batch
    live: list[int] = dataclasses.field(default_factory=list)  # arguments used outside the scan

    @property
    def count(self) -> int:
        """The number of stages."""
        return self.mesh.shape[STAGE]

    @property
    def replicas(self) -> int:
        """The number of devices that the rows are divided over."""
        return math.prod(self.mesh.shape[name] for name in self.rows)

    @property
    def rest(self) -> list[Array]:
        """The arguments in `live`."""
        return [self.arguments[i] for i in self.live]

    @classmethod
    def of(cls, fn: Callable, mesh: Any, micro: int, args: tuple) -> Self:
        """The stages of `fn` for these arguments, of which the last is the batch.

        Raises:
            ValueError: as `pipelined` says.
        """
        *before, batch = args
        arguments, structure = jax.tree.flatten(tuple(before))
        used = {name for name, size in mesh.shape.items() if size > 1}
        if STAGE not in mesh.shape or used - {STAGE, *ROWS}:
            raise ValueError(f"a pipeline runs over {STAGE} and {ROWS}, the mesh is {mesh.shape}")
        rows = tuple(name for name in ROWS if name in used)
        replicas = math.prod(mesh.shape[name] for name in rows)
        for x in jax.tree.leaves(batch):
            if micro < 1 or len(x) % (micro * replicas):
                shares = f"{micro} micro-batches, each over {replicas} devices"
                raise ValueError(f"{len(x)} rows do not divide into {shares}")
        # Row i goes to micro-batch i mod M, so that rows of a sharded batch stay on their device.
        cut = lambda x: jnp.moveaxis(x.reshape(len(x) // micro, micro, *x.shape[1:]), 1, 0)
        batches = jax.tree.map(cut, batch)
        share = lambda x: jax.ShapeDtypeStruct((x.shape[1] // replicas, *x.shape[2:]), x.dtype)
        one = jax.tree.map(share, batches)
        arguments = [jnp.asarray(x) for x in arguments]
        return cls(fn, mesh, structure, arguments, batches, one, rows)._measured()

    def _measured(self) -> Self:
        """The same stages with `xs`, `carry`, `result` and `live` filled in, by tracing."""
        _, _, xs = self.opened(self.arguments, zeros(self.one))
        lengths = {len(x) for x in xs}
        if len(lengths) != 1 or min(lengths) % self.count:
            raise ValueError(f"{sorted(lengths)} layers do not divide over {self.count} stages")
        start = lambda *arguments: self.opened(arguments, zeros(self.one))[0]
        run = lambda *arguments: self.fn(*self.structure.unflatten(arguments), zeros(self.one))
        carry, result = (jax.eval_shape(f, *self.arguments) for f in (start, run))
        whole = dataclasses.replace(
            self, xs=xs, carry=carry, result=result, live=list(range(len(self.arguments)))
        )
        xs_of_stage = [
            jax.ShapeDtypeStruct((len(x) // self.count, *x.shape[1:]), x.dtype) for x in xs
        ]

        def every_piece(*arguments):
            arguments, one, x = list(arguments), zeros(self.one), zeros(carry)
            out = whole.stage(0, arguments, zeros(xs_of_stage), x, one)
            return out, whole.tail(arguments, x, one)

        used = frozenset().union(*argument_dependencies(every_piece, *self.arguments))
        return dataclasses.replace(whole, live=sorted(used))

    def opened(self, arguments: Any, one: Any) -> tuple[list[Array], Callable, list[Array]]:
        """The first scan of `fn`: (its initial carry, its body, the stacks that it runs over)."""

        def stop(body, init, xs, length, **options):
            raise _Reached(init, body, xs)

        try:
            around_scans(self.fn, _same, stop)(*self.structure.unflatten(arguments), one)
        except _Reached as reached:
            return reached.args
        raise ValueError("the function runs no scan, expected one over layers")

    def stage(self, at: Any, rest: list, xs: list, x: list, one: Any) -> list[Array]:
        """The output of stage `at` for micro-batch `one` and the input x, which stage 0 ignores."""
        start, body, _ = self.opened(self._full(rest), one)
        x = [jnp.where(at == 0, a, b) for a, b in zip(start, x)]
        out, ys = lax.scan(body, x, xs)
        if jax.tree.leaves(ys):
            raise ValueError("the scan over layers returns more than its carry")
        return out

    def tail(self, rest: list, out: list, one: Any) -> Any:
        """The result of `fn` from the output of the last layer."""
        passed = []

        def skip(body, init, xs, length, **options):
            if passed:
                return lax.scan(body, init, xs, length, **options)
            passed.append(True)
            return out, []

        arguments = self.structure.unflatten(self._full(rest))
        return around_scans(self.fn, _same, skip)(*arguments, one)

    def _full(self, rest: list) -> list[Array]:
        """All arguments: those in `live` from `rest`, and zeros for the others."""
        used = dict(zip(self.live, rest))
        return [used[i] if i in used else zeros(x) for i, x in enumerate(self.arguments)]

    def run(self, fn: Callable, out_specs: Any) -> Any:
        """`fn(rest, xs, batches)` on each device."""
        over = lambda tree, spec: jax.tree.map(lambda _: spec, tree)
        trees = (self.rest, self.xs, self.batches)
        specs = tuple(map(over, trees, (P(), P(STAGE), P(None, self.rows or None))))
        options = dict(mesh=self.mesh, in_specs=specs, out_specs=out_specs, check_vma=False)
        return jax.shard_map(fn, **options)(*trees)


class _Reached(Exception):
    """Raised at the scan over layers, with its initial carry, its body and its stacks."""


def zeros(tree: Any) -> Any:
    """Zeros of the shapes in a tree."""
    return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), tree)


def _same(body: Callable) -> Callable:
    return body
