"""uses: how a function reads each weight, found by tracing the function without data."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
from jax import lax

from .arguments import FUNCTION, TREE, takes
from .leaf import Encoded, is_encoded, is_random_key
from .lifting import lift
from .paths import arrays_only, is_whole, paths
from .usual_axes import usual_axes

PRODUCTS = ("dot_general", "conv_general_dilated")


class Use(NamedTuple):
    """One operation that reads a weight.

    Example:
        >>> Use("dot_general", (-2,), (8, 64), "float32", 65536).axes
        (-2,)
    """

    op: str  # the primitive: dot_general, conv_general_dilated, gather, or one on the dense array
    axes: tuple[int, ...]  # the weight's axes that the operation sums over, counted from the end
    inputs: tuple[int, ...]  # shape of the other operand
    dtype: str  # dtype of the other operand
    flops: int  # flops of one run of this operation


@takes(fn=FUNCTION, params=TREE)
def uses(fn: Callable, params: Any, *args: Any) -> dict[str, list[Use]]:
    """{path: [Use, ...]} for every weight that `fn(params, *args)` reads; params may be abstract.

    Leaves that are no arrays, such as ints, strings and functions, reach `fn` as they are.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> by_path = jm.uses(lambda p, x: x @ p["w"], {"w": jnp.ones((64, 8))}, jnp.ones((2, 64)))
        >>> by_path["w"][0].axes, by_path["w"][0].flops
        ((-2,), 2048)
    """
    fn, params = arrays_only(fn, params)
    by_path = {path: [] for path in paths(params)}
    leaves, tree = jax.tree.flatten(params, is_leaf=is_whole)
    shapes = [jax.ShapeDtypeStruct(w.shape, w.dtype) for w in leaves]

    def run(arrays, args):
        watch = lambda w, notes: w if is_random_key(w) else Watched(w, notes.append)
        watched = tree.unflatten(map(watch, arrays, by_path.values()))
        # `lift` reports the operations that would decode a `Watched`, with its path
        note = lambda op, path: by_path[path].append(Use(op, (), (), "", 0))
        return jax.tree.map(
            lambda x: x.decode() if is_encoded(x) else x,
            lift(fn, on_decode=note)(watched, *args),
            is_leaf=is_encoded,
        )

    jax.eval_shape(run, shapes, args)
    # a product or a look-up has two notes: the one by `Watched` has more detail
    detailed = (*PRODUCTS, "gather")
    return {
        path: list(dict.fromkeys(use for use in notes if use.inputs or use.op not in detailed))
        for path, notes in by_path.items()
        if notes
    }


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Watched(Encoded):
    """An unchanged weight that calls `note` with a `Use` for every operation that reads it."""

    decoded_once: ClassVar[bool] = False

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

    def axes(self, transposed_axes):
        """The axes of the weight, counted from the end, for axes of the transposed weight."""
        order = self.order or range(-self.ndim, 0)  # its last entries after slices of a stack
        return tuple(order[a if a < 0 else a - self.ndim] for a in transposed_axes)

    def moved_layers(self):
        return self.w, lambda w: dataclasses.replace(self, w=w)

    def transpose(self, axes):
        return dataclasses.replace(self, w=self.w.transpose(axes), order=self.axes(axes))

    def dot(self, x, dims, **kwargs):
        (_, w_sum), (_, w_batch) = dims
        outputs = math.prod(d for a, d in enumerate(self.shape) if a not in (*w_sum, *w_batch))
        flops = 2 * x.size * outputs
        axes = tuple(sorted(self.axes(w_sum)))
        self.note(Use("dot_general", axes, tuple(x.shape), str(x.dtype), flops))
        return NotImplemented

    def convolve(self, x, dimension_numbers, **kwargs):
        output = jax.eval_shape(
            lambda x, w: lax.conv_general_dilated_p.bind(
                x, w, dimension_numbers=dimension_numbers, **kwargs
            ),
            x,
            self.w,
        )
        summed = dimension_numbers.rhs_spec[1:]  # the inputs of a group, and the window
        flops = 2 * output.size * math.prod(self.shape[a] for a in summed)
        axes = tuple(sorted(self.axes(summed)))
        self.note(Use("conv_general_dilated", axes, tuple(x.shape), str(x.dtype), flops))
        return NotImplemented

    def take(self, rows):
        self.note(Use("gather", (), tuple(rows.shape), str(rows.dtype), 0))
        return NotImplemented


def summed_axes(
    path: str,
    uses: Mapping | None,
    leaves: Mapping[str, Any] | None = None,
    planned: Mapping[str, tuple[int, ...]] | None = None,
) -> tuple[int, ...]:
    """The axes that the products of a weight sum over, from the end.

    A table that is only looked up has the axis (-1,). Where neither `uses` nor `planned`, the axes
    of a plan, tells, they are the `usual_axes`; `leaves` has the weights by path.

    Raises:
        ValueError: a weight of more than two axes may be no stack of matrices; the message says
            what to pass.

    Example:
        >>> summed_axes("table", {"table": [Use("gather", (), (3,), "int32", 0)]})
        (-1,)
        >>> shape = lambda *s: jax.ShapeDtypeStruct(s, "float32")
        >>> leaves = {"query/kernel": shape(64, 4, 16), "query/bias": shape(4, 16)}
        >>> summed_axes("query/kernel", None, leaves)
        (-3,)
    """
    if path not in (uses or {}):
        return (planned or {}).get(path) or usual_axes(path, leaves or {})
    weight_uses = (uses or {}).get(path, ())
    products = [use.axes for use in weight_uses if use.op in PRODUCTS]
    if products:
        return products[0]
    return (-1,) if any(use.op == "gather" for use in weight_uses) else (-2,)
