"""uses: how a function consumes each weight, found by tracing it: no data and no memory."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from .leaf import Encoded, is_encoded
from .lifting import lift
from .paths import is_whole, paths


class Use(NamedTuple):
    """One operation that reads a weight.

    Example:
        >>> Use("dot_general", (-2,), (8, 64), "float32", 65536).axes
        (-2,)
    """

    op: str  # the primitive: dot_general, gather, or one that needs the dense array
    axes: tuple[int, ...]  # the weight's axes it sums over, counted from the end, in its own order
    inputs: tuple[int, ...]  # shape of what the weight meets
    dtype: str  # of what the weight meets
    flops: int  # of this operation, once


def uses(fn: Callable, params: Any, *args: Any) -> dict[str, list[Use]]:
    """{path: [Use, ...]} for every weight that `fn(params, *args)` reads; params may be abstract.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> found = jm.uses(lambda p, x: x @ p["w"], {"w": jnp.ones((64, 8))}, jnp.ones((2, 64)))
        >>> found["w"][0].axes, found["w"][0].flops
        ((-2,), 2048)
    """
    found = {path: [] for path in paths(params)}
    leaves, tree = jax.tree.flatten(params, is_leaf=is_whole)
    shapes = [jax.ShapeDtypeStruct(w.shape, w.dtype) for w in leaves]

    def run(arrays, args):
        watched = tree.unflatten([Watched(w, n.append) for w, n in zip(arrays, found.values())])
        # other operations reach the reader's fallback, which tells the path
        note = lambda op, path: found[path].append(Use(op, (), (), "", 0))
        return jax.tree.map(
            lambda x: x.decode() if is_encoded(x) else x,
            lift(fn, on_decode=note)(watched, *args),
            is_leaf=is_encoded,
        )

    jax.eval_shape(run, shapes, args)
    dense = ("dot_general", "gather")  # told by the leaf itself, with more detail
    return {
        path: list(dict.fromkeys(u for u in us if u.inputs or u.op not in dense))
        for path, us in found.items()
        if us
    }


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Watched(Encoded):
    """A weight as it is, which tells of every operation that reads it."""

    w: Any
    note: Any = dataclasses.field(metadata=dict(static=True))
    order: tuple = dataclasses.field(default=(), metadata=dict(static=True))  # after a transpose

    shape = property(lambda self: self.w.shape)
    dtype = property(lambda self: self.w.dtype)

    @property
    def stack(self):
        return () if self.order else self.w.shape[:-2]

    def decode(self):
        return self.w

    def astype(self, dtype):
        return dataclasses.replace(self, w=self.w.astype(dtype))

    def axes(self, now):
        """The weight's own axes, counted from the end, for axes of what it has become."""
        order = self.order or range(-self.ndim, 0)
        return tuple(order[a] for a in now)

    def transpose(self, axes):
        return dataclasses.replace(self, w=self.w.transpose(axes), order=self.axes(axes))

    def dot(self, x, dims, **kwargs):
        (_, wc), (_, wb) = dims
        outs = math.prod(d for a, d in enumerate(self.shape) if a not in (*wc, *wb))
        flops = 2 * x.size * outs
        axes = tuple(sorted(self.axes(wc)))
        self.note(Use("dot_general", axes, tuple(x.shape), str(x.dtype), flops))
        return NotImplemented

    def take(self, rows):
        self.note(Use("gather", (), tuple(rows.shape), str(rows.dtype), 0))
        return NotImplemented


def summed_axes(path: str, uses: Mapping | None) -> tuple[int, ...]:
    """The axes that the weight's product sums over; a table that is only looked up: its last."""
    found = (uses or {}).get(path, ())
    dots = [u.axes for u in found if u.op == "dot_general"]
    if dots:
        return dots[0]
    return (-1,) if any(u.op == "gather" for u in found) else (-2,)
