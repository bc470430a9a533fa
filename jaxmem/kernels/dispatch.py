"""differentiated_by and on_one_device: products computed in one way and differentiated in another.

Both are one primitive of JAX with a rule of its own for derivatives. `jax.custom_jvp` does not do:
jax 0.10 replaces its call by the fast product's body where it divides a scan or a `jax.checkpoint`
into what is known and what is linear, so a second derivative would differentiate the fast product.

A Pallas kernel, like a function of a compiled library, runs on one device only, since XLA's
partitioner cannot divide it. The devices of a program are known when it is lowered, not when it is
traced, so the primitive's lowering chooses.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Product = Callable[..., Array]

# `fast` runs, if `only_on` is None or names the platform; `plain` is differentiated.
_product = Primitive("encoded_product")


def differentiated_by(plain: Product) -> Callable[[Product], Product]:
    """A decorator: `product(*operands, **options)` has the derivatives of `plain`, of every order.

    A product of integers or by a kernel has no derivative, or one that differs from the derivative
    with the decoded weight. Operands are pytrees of arrays, options are hashable; both functions
    take them and give one array of the same shape and dtype.

    Example:
        >>> import jax.numpy as jnp
        >>> @differentiated_by(lambda x, w: x**3 * w)
        ... def rounded_product(x, w):
        ...     return jnp.round(x**3) * w
        >>> cube = lambda x: rounded_product(x, 3.0)
        >>> float(cube(1.6)), float(jax.grad(cube)(2.0)), float(jax.grad(jax.grad(cube))(2.0))
        (12.0, 36.0, 36.0)
    """

    def decorate(product):
        @functools.wraps(product)
        def run(*operands, **options):
            options = tuple(sorted(options.items()))
            return _bind(operands, product, plain, options, only_on=None)

        return run

    return decorate


def on_one_device(
    kernel: Callable, otherwise: Callable, *args: Any, platform: str = "tpu"
) -> Array:
    """`kernel(*args)` for one device of a platform, or inside `shard_map`; `otherwise(*args)` else.

    Both functions take pytrees of arrays and give one array of the same shape and dtype. The
    derivatives are those of `otherwise`, which runs too where `jax.export` has a size as a symbol,
    and in every program that is exported for a CPU, whose library another machine does not have.

    Example:
        >>> import jax.numpy as jnp
        >>> float(on_one_device(lambda x: x * 2, lambda x: x + x, jnp.ones(())))
        2.0
    """
    sizes = [size for a in jax.tree.leaves(args) for size in jnp.shape(a)]
    if not all(isinstance(size, int) for size in sizes):
        return otherwise(*args)
    return _bind(args, kernel, otherwise, (), only_on=platform)


def at_most(size: Any, most: int) -> bool:
    """Whether a size is known to be at most `most`: the symbol of a size in `jax.export` is not.

    Example:
        >>> from jax import export
        >>> at_most(3, 32), at_most(33, 32), at_most(export.symbolic_shape("batch")[0], 32)
        (True, False, False)
    """
    return isinstance(size, int) and size <= most


def _bind(operands, fast, plain, options, only_on):
    arrays, tree = jax.tree.flatten(operands)  # a primitive takes arrays, no pytrees
    of_arrays = lambda fn: _OfArrays(fn, tree, options)
    return _product.bind(*arrays, fast=of_arrays(fast), plain=of_arrays(plain), only_on=only_on)


@dataclasses.dataclass(frozen=True)
class _OfArrays:
    """`fn` as a function of the arrays of its operands; equal ones are traced and lowered once."""

    fn: Callable
    tree: Any  # of the operands
    options: tuple[tuple[str, Any], ...]

    def __call__(self, *arrays):
        return self.fn(*self.tree.unflatten(arrays), **dict(self.options))


@dataclasses.dataclass(frozen=True)
class _Mapped:
    """`fn` under `vmap`."""

    fn: Callable
    axes: tuple[int | None, ...]
    mesh_axes: Any  # that the mapped axis is divided over

    def __call__(self, *arrays):
        return jax.vmap(self.fn, self.axes, spmd_axis_name=self.mesh_axes)(*arrays)


_compiled = jax.jit(_product.bind, static_argnames=("fast", "plain", "only_on"))


@_product.def_impl
def _run(*arrays, **params):
    with jax.disable_jit(False):  # else the function would be run as it is, and come here again
        return _compiled(*arrays, **params)


@_product.def_abstract_eval
def _shape(*avals, plain, **_):
    return jax.make_jaxpr(plain)(*avals).out_avals[0]


def _differentiate(primals, tangents, *, plain, **params):
    """(the product, its tangent): the tangent is that of `plain` for the operands that move."""
    moving = [i for i, t in enumerate(tangents) if not isinstance(t, ad.Zero)]

    def of_moving(*arrays):
        return plain(*(dict(zip(moving, arrays)).get(i, x) for i, x in enumerate(primals)))

    y = _product.bind(*primals, plain=plain, **params)
    x, x_dot = ([values[i] for i in moving] for values in (primals, tangents))
    return y, jax.jvp(of_moving, x, x_dot)[1]


def _batch(axis, arrays, axes, *, fast, plain, **params):
    """Under `vmap` along `axes`: (the result, its axis of the batch)."""
    if all(a is None for a in axes):
        return _product.bind(*arrays, fast=fast, plain=plain, **params), None
    mapped = lambda fn: _Mapped(fn, tuple(axes), axis.spmd_name or None)
    return _product.bind(*arrays, fast=mapped(fast), plain=mapped(plain), **params), 0


def _lower(ctx, *arrays, fast, plain, only_on, platform=None):
    module = ctx.module_context
    one_device = getattr(module.axis_context, "num_devices", 1) == 1
    exported = platform == "cpu" and module.lowering_parameters.for_export
    is_fast = only_on is None or (only_on == platform and one_device and not exported)
    chosen = fast if is_fast else plain
    return mlir.lower_fun(chosen, multiple_results=False)(ctx, *arrays)


ad.primitive_jvps[_product] = _differentiate
batching.fancy_primitive_batchers[_product] = _batch
mlir.register_lowering(_product, _lower)
for _platform in ("cpu", "tpu"):
    lower = functools.partial(_lower, platform=_platform)
    mlir.register_lowering(_product, lower, platform=_platform)
