"""stats: E[x xᵀ] of the inputs of each weight, returned as the cotangent of a zero probe.

It takes one backward pass and no hooks, so it works under `scan`, `remat` and `jit`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..core.arguments import BATCHES, FUNCTION, TREE, takes
from ..core.jaxpr_rewrites import without_dead_code
from ..core.leaf import decode, is_encoded
from ..core.lifting import lift
from ..core.paths import arrays_only, paths
from ..core.usage import PRODUCTS, Watched, uses
from .batches import tuples
from .convolution_windows import ConvolutionWindows


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Moments:
    """Moments in f32 of the vectors x (k,) that a weight multiplies, for each slice of a stack.

    Example:
        >>> import jax.numpy as jnp
        >>> m = Moments(*(jnp.ones(s) for s in [(6, 4, 4), (6, 4), (6, 4), (6,)]))
        >>> m.diag.shape
        (6, 4)
    """

    second: Array  # E[x xᵀ] (*stack, k, k), or E[x²] (*stack, k)
    mean: Array  # (*stack, k)
    absmax: Array  # (*stack, k)
    count: Array  # (*stack,) how many vectors that are not zero: zeros only fill up arrays

    @property
    def diag(self) -> Array:
        """E[x²], (*stack, k)."""
        if self.second.ndim == self.mean.ndim:
            return self.second
        return jnp.diagonal(self.second, axis1=-2, axis2=-1)


@takes(fn=FUNCTION, params=TREE, batches=BATCHES)
def stats(
    fn: Callable,
    params: Any,
    batches: Iterable[tuple],
    *,
    moments: Literal["gram", "diag"] = "gram",
) -> dict[str, Moments]:
    """{path: Moments} of every weight that `fn(params, *batch)` multiplies, over the batches.

    "gram" takes k² numbers per weight, "diag" takes k. The vectors run over the weight's summed
    axes in order, as in the matrix (n, k) of `Fold`. If a weight is multiplied more than once per
    call, its moments cover all these uses, and its absmax is the sum of the uses' absmax, an upper
    bound. What the kernel of a convolution multiplies are windows, those of all groups together.

    Raises:
        ValueError: there is no batch, or `moments` is unknown; the inputs of a weight hold NaN or
            infinity (the message has its path).
        TypeError: a batch is no tuple.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> x = jnp.array([[1.0, 2.0], [3.0, 4.0]])
        >>> found = jm.stats(lambda p, x: x @ p["w"], {"w": jnp.ones((2, 5))}, [(x,)])
        >>> found["w"].second
        Array([[ 5.,  7.],
               [ 7., 10.]], dtype=float32)
    """
    if moments not in ("gram", "diag"):
        raise ValueError(f'moments are "gram" or "diag", got {moments!r}')
    fn, params = arrays_only(fn, params)
    total, axes = None, None
    for batch in tuples(batches, "stats"):
        if total is None:
            axes = product_axes(fn, params, batch)
            total = _probes(params, axes, moments)
        total = _add((fn, moments, tuple(axes.items())), params, total, batch)
    means = {path: _mean(sums) for path, sums in total.items()}
    for path, mean in means.items():
        traced = isinstance(mean.second, jax.core.Tracer)
        if not traced and not bool(jnp.isfinite(mean.second).all()):
            raise ValueError(f"{path}: it is fed NaN or infinity, expected finite numbers")
    return means


def product_axes(fn: Callable, params: Any, batch: tuple) -> dict[str, tuple[int, ...]]:
    """{path: summed axes} of the weights whose products all sum over the same axes.

    Only such weights have moments.
    """
    uses_of = uses(fn, params, *batch)
    axes_of = {p: {u.axes for u in us if u.op in PRODUCTS} for p, us in uses_of.items()}
    return {path: next(iter(axes)) for path, axes in axes_of.items() if len(axes) == 1}


def _probes(params: Any, axes: dict[str, tuple[int, ...]], moments: str) -> dict[str, Moments]:
    """{path: moments of zeros, in the shapes of the result}."""
    leaves = dict(zip(paths(params), jax.tree.leaves(params, is_leaf=is_encoded)))
    probes = {}
    for path, summed in axes.items():
        shape = leaves[path].shape
        first = min(summed) + len(shape)
        # Axes before the first summed axis are the stack. If all later axes are summed, the axis
        # before them is the output, and no part of the stack.
        if len(summed) == len(shape) - first:
            first = max(first - 1, 0)
        stack = shape[:first]
        k = 1
        for a in summed:
            k *= shape[a]
        second = (*stack, k, k) if moments == "gram" else (*stack, k)
        shapes = (second, (*stack, k), (*stack, k), stack)
        probes[path] = Moments(*(jnp.zeros(s, jnp.float32) for s in shapes))
    return probes


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def _add(
    options: tuple[Callable, str, tuple], params: Any, total: dict[str, Moments], batch: tuple
) -> dict[str, Moments]:
    """`total` plus the sums over the vectors of a batch.

    `options` is (fn, "gram" or "diag", ((path, summed axes) of each weight)).
    """
    fn, moments, axes = options
    axes = dict(axes)
    leaves, tree = jax.tree.flatten(params, is_leaf=is_encoded)
    zeros = jax.tree.map(jnp.zeros_like, total)

    def loss(probes):
        tapped = [
            _Tapped(decode(w), None, (), probes[path], axes[path], moments) if path in axes else w
            for path, w in zip(paths(params), leaves)
        ]
        outs = jax.tree.leaves(decode(lift(fn)(tree.unflatten(tapped), *batch)))
        outs = [y for y in outs if jnp.issubdtype(y.dtype, jnp.floating)]
        return sum(jnp.sum(y.astype(jnp.float32)) for y in outs)

    # Only the probes' cotangents are needed.
    seen = without_dead_code(jax.grad(loss))(zeros)
    return {
        path: Moments(
            old.second + seen[path].second,
            old.mean + seen[path].mean,
            jnp.maximum(old.absmax, seen[path].absmax),
            old.count + seen[path].count,
        )
        for path, old in total.items()
    }


def _mean(sums: Moments) -> Moments:
    """Means from sums over `sums.count` vectors."""
    n = jnp.maximum(sums.count, 1)
    per = lambda a: a / n.reshape(*n.shape, *(1,) * (a.ndim - n.ndim))
    return dataclasses.replace(sums, second=per(sums.second), mean=per(sums.mean))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Tapped(Watched):
    """A weight whose probe's cotangent is the moments of what the weight multiplies."""

    recomputed: ClassVar[bool] = False
    probe: Any = None
    summed: tuple = dataclasses.field(default=(), metadata=dict(static=True))
    moments: str = dataclasses.field(default="gram", metadata=dict(static=True))

    @property
    def stack(self):
        return () if self.order else self.probe.count.shape

    def dot(self, x, dims, preferred_element_type=None, precision=None):
        (xc, wc), (xb, wb) = dims
        axes = self.axes(wc)
        if tuple(sorted(axes)) != self.summed:
            return NotImplemented
        order = [xc[axes.index(a)] for a in self.summed]
        batch = [b for _, b in sorted(zip(wb, xb))]
        free = [a for a in range(x.ndim) if a not in (*xc, *xb)]
        stack = self.probe.mean.shape[:-1]
        if batch and tuple(x.shape[b] for b in batch) != stack:
            return NotImplemented
        y = lax.dot_general(x, self.w, dims, precision, preferred_element_type)
        vectors = _Vectors(len(batch), len(free), (*batch, *free, *order))
        return _tap(y, x, self.probe, vectors, self.moments)

    def convolve(self, x, dimension_numbers, **kwargs):
        axes = self.axes(dimension_numbers.rhs_spec[1:])  # the inputs of a group, and the window
        if tuple(sorted(axes)) != self.summed or kwargs["batch_group_count"] != 1:
            return NotImplemented
        numbers = {"dimension_numbers": dimension_numbers}
        y = lax.conv_general_dilated_p.bind(x, self.w, **numbers, **kwargs)
        order = tuple(axes.index(a) for a in self.summed)
        names = ("window_strides", "padding", "lhs_dilation", "rhs_dilation")
        options = tuple((name, kwargs[name]) for name in names)
        windows = ConvolutionWindows(self.w.shape, dimension_numbers, order, options)
        return _tap(y, x, self.probe, windows, self.moments)

    def take(self, rows):
        return NotImplemented

    def stop_gradient(self):
        return self  # the statistics of frozen weights are cotangents, too


@dataclasses.dataclass(frozen=True)
class _Vectors:
    """A hashable function of what a product multiplies, which gives its vectors as rows.

    Transposed to `order`, an array has `batch` axes first, then `free` ones, then its summed axes.
    """

    batch: int
    free: int
    order: tuple[int, ...]

    def __call__(self, x: Array) -> Array:
        """The vectors (*batch, rows, k)."""
        rows = x.transpose(self.order)
        summed = self.batch + self.free
        free, k = rows.shape[self.batch : summed], rows.shape[summed:]
        return rows.reshape(*rows.shape[: self.batch], math.prod(free), math.prod(k))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _tap(y: Array, x: Array, probe: Moments, rows_of: Callable, moments: str) -> Array:
    """y, with the moments of `rows_of(x)` (*batch, rows, k) as the cotangent of `probe`.

    `moments` is "gram" or "diag".
    """
    return y


def _tap_fwd(y, x, probe, rows_of, moments):
    return y, (x, probe)  # x is kept unchanged: weights with the same input keep it once


def _tap_bwd(rows_of, moments, residuals, ct):
    x, probe = residuals
    rows = rows_of(x.astype(jnp.float32))
    second = rows.mT @ rows if moments == "gram" else (rows * rows).sum(-2)
    count = (rows != 0).any(-1).sum(-1, dtype=jnp.float32)
    seen = Moments(second, rows.sum(-2), jnp.abs(rows).max(-2, initial=0.0), count)
    seen = jax.tree.map(lambda a, p: jnp.broadcast_to(a, p.shape), seen, probe)
    return ct, jnp.zeros_like(x), seen


_tap.defvjp(_tap_fwd, _tap_bwd)
