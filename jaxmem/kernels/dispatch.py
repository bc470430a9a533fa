"""differentiated_by, on_one_device and by_platform: products computed in one way or another.

All are one primitive of JAX with a rule of its own for derivatives. `jax.custom_jvp` does not do:
jax 0.10 replaces its call by the fast product's body where it divides a scan or a `jax.checkpoint`
into what is known and what is linear, so a second derivative would differentiate the fast product.

A Pallas kernel, like a function of a compiled library, runs on one device only, since XLA's
partitioner cannot divide it. The devices of a program are known when it is lowered, not when it is
traced, so the primitive's lowering chooses. What it does not choose is not traced, if the caller
says what the result is like.
"""

import contextlib
import contextvars
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Product = Callable[..., Array]

# `fast` runs, if `only_on` is None or names the platform; `plain` is differentiated. The result is
# `like` (shape, dtype), if that is not None.
_product = Primitive("encoded_product")
_fast_in_exports = contextvars.ContextVar("exports keep products of one CPU", default=False)


def differentiated_by(
    plain: Product, like: Callable[..., Any] | None = None
) -> Callable[[Product], Product]:
    """A decorator: `product(*operands, **options)` has the derivatives of `plain`, of every order.

    A product of integers or by a kernel has no derivative, or one that differs from the derivative
    with the decoded weight. Operands are pytrees of arrays, options are hashable; both functions
    take them and give one array of the same shape and dtype, which `like(*operands)` has, if it is
    given.

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
            result = None if like is None else like(*operands)
            return _bind(operands, product, plain, options, only_on=None, like=result)

        return run

    return decorate


def on_one_device(
    kernel: Callable, otherwise: Callable, *args: Any, platform: str = "tpu", like: Any = None
) -> Array:
    """`kernel(*args)` for one device of a platform, or inside `shard_map`; `otherwise(*args)` else.

    Both functions take pytrees of arrays and give one array of the same shape and dtype, those of
    `like` if it is given. The derivatives are those of `otherwise`, which runs too where
    `jax.export` has a size as a symbol, and in every program that is exported for a CPU, whose
    library another machine does not have.

    Example:
        >>> import jax.numpy as jnp
        >>> float(on_one_device(lambda x: x * 2, lambda x: x + x, jnp.ones(())))
        2.0
    """
    if not _are_known(args):
        return otherwise(*args)
    return _bind(args, kernel, otherwise, (), only_on=f"one {platform}", like=like)


@contextlib.contextmanager
def exported_for_this_machine() -> Iterator[None]:
    """What `jax.export` exports within keeps fast products of one CPU, which other CPUs may lack.

    JAX remembers what it lowered: give it a function that it has not seen.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> def export():
        ...     fn = lambda x: on_one_device(lambda x: x * 2, lambda x: x + x, x, platform="cpu")
        ...     return jax.export.export(jax.jit(fn), platforms=["cpu"])(jnp.ones(()))
        >>> "multiply" in export().mlir_module()
        False
        >>> with exported_for_this_machine():
        ...     "multiply" in export().mlir_module()
        True
    """
    token = _fast_in_exports.set(True)
    try:
        yield
    finally:
        _fast_in_exports.reset(token)


def by_platform(*args: Any, cpu: Callable, default: Callable, like: Any) -> Array:
    """`cpu(*args)` on CPUs, `default(*args)` elsewhere: one array, of `like`'s shape and dtype.

    The derivatives are those of `default`. It is `jax.lax.platform_dependent`, except that the
    function of another platform is not traced.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.ones(())
        >>> float(by_platform(x, cpu=lambda x: x * 2, default=lambda x: x + x, like=x))
        2.0
    """
    if not _are_known(args):
        return jax.lax.platform_dependent(*args, cpu=cpu, default=default)
    return _bind(args, cpu, default, (), only_on="cpu", like=like)


def product_like(x: Any, leaf: Any) -> jax.ShapeDtypeStruct:
    """What x (m, k) times the rows of a leaf is like: (m, n) f32.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxmem as jm
        >>> leaf = jm.Int(4).encode(jnp.ones((8, 3)))
        >>> product_like(jnp.ones((2, 8)), leaf).shape
        (2, 3)
    """
    return jax.ShapeDtypeStruct((x.shape[0], leaf.fold.n), jnp.float32)


def at_most(size: Any, most: int) -> bool:
    """Whether a size is known to be at most `most`: the symbol of a size in `jax.export` is not.

    Example:
        >>> from jax import export
        >>> at_most(3, 32), at_most(33, 32), at_most(export.symbolic_shape("batch")[0], 32)
        (True, False, False)
    """
    return isinstance(size, int) and size <= most


def _are_known(args):
    """Whether all sizes are numbers: `jax.export` may have them as symbols."""
    sizes = [size for a in jax.tree.leaves(args) for size in jnp.shape(a)]
    return all(isinstance(size, int) for size in sizes)


def _bind(operands, fast, plain, options, only_on, like):
    arrays, tree = jax.tree.flatten(operands)  # a primitive takes arrays, no pytrees
    of_arrays = lambda fn: _OfArrays(fn, tree, options)
    like = None if like is None else (tuple(like.shape), jnp.dtype(like.dtype))
    functions = dict(fast=of_arrays(fast), plain=of_arrays(plain))
    return _product.bind(*arrays, **functions, only_on=only_on, like=like)


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


_compiled = jax.jit(_product.bind, static_argnames=("fast", "plain", "only_on", "like"))


@_product.def_impl
def _run(*arrays, **params):
    with jax.disable_jit(False):  # else the function would be run as it is, and come here again
        return _compiled(*arrays, **params)


@_product.def_abstract_eval
def _shape(*avals, plain, like, **_):
    on_mesh = any(getattr(a, "vma", None) or not a.sharding.mesh.empty for a in avals)
    if like is None or on_mesh:
        return jax.make_jaxpr(plain)(*avals).out_avals[0]
    return jax.core.ShapedArray(*like)


def _differentiate(primals, tangents, *, plain, **params):
    """(the product, its tangent): the tangent is that of `plain` for the operands that move."""
    moving = [i for i, t in enumerate(tangents) if not isinstance(t, ad.Zero)]

    def of_moving(*arrays):
        return plain(*(dict(zip(moving, arrays)).get(i, x) for i, x in enumerate(primals)))

    y = _product.bind(*primals, plain=plain, **params)
    x, x_dot = ([values[i] for i in moving] for values in (primals, tangents))
    return y, jax.jvp(of_moving, x, x_dot)[1]


def _batch(axis, arrays, axes, *, fast, plain, like, **params):
    """Under `vmap` along `axes`: (the result, its axis of the batch)."""
    if all(a is None for a in axes):
        return _product.bind(*arrays, fast=fast, plain=plain, like=like, **params), None
    mapped = lambda fn: _Mapped(fn, tuple(axes), axis.spmd_name or None)
    like = None if like is None else ((axis.size, *like[0]), like[1])
    return _product.bind(*arrays, fast=mapped(fast), plain=mapped(plain), like=like, **params), 0


def _lower(ctx, *arrays, fast, plain, only_on, like, platform=None):
    module = ctx.module_context
    one_device = getattr(module.axis_context, "num_devices", 1) == 1
    for_export = module.lowering_parameters.for_export and not _fast_in_exports.get()
    exported = platform == "cpu" and for_export
    is_one = only_on == f"one {platform}" and one_device and not exported
    is_fast = only_on in (None, platform) or is_one
    chosen = fast if is_fast else plain
    return mlir.lower_fun(chosen, multiple_results=False)(ctx, *arrays)


ad.primitive_jvps[_product] = _differentiate
batching.fancy_primitive_batchers[_product] = _batch
mlir.register_lowering(_product, _lower)
for _platform in ("cpu", "tpu"):
    lower = functools.partial(_lower, platform=_platform)
    mlir.register_lowering(_product, lower, platform=_platform)
