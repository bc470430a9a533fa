"""on_one_chip(kernel, otherwise): a Pallas kernel where it can run, its XLA form everywhere else.

A kernel is opaque to the partitioner: a program for many chips that holds one does not compile.
Which chips a program is for is known when it is lowered, not when it is traced, so the choice is a
primitive of its own, lowered to one of the two.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

_either = Primitive("kernel_or_not")


def on_one_chip(kernel: Callable, otherwise: Callable, *args: Any) -> Array:
    """`kernel(*args)` for one TPU chip, or inside `shard_map`; `otherwise(*args)` elsewhere.

    Both are functions of pytrees of arrays to one array, of the same shape and dtype. Works under
    `jit` and `vmap`; a gradient is the caller's to define.

    Example:
        >>> import jax.numpy as jnp
        >>> float(on_one_chip(lambda x: x * 2, lambda x: x + x, jnp.ones(())))
        2.0
    """
    flat, tree = jax.tree.flatten(args)
    unflat = lambda fn: lambda *flat: fn(*tree.unflatten(flat))
    return _either.bind(*flat, kernel=unflat(kernel), otherwise=unflat(otherwise))


@_either.def_impl
def _run(*args, kernel, otherwise):
    return jax.jit(lambda *args: _either.bind(*args, kernel=kernel, otherwise=otherwise))(*args)


@_either.def_abstract_eval
def _shape(*avals, kernel, otherwise):
    return jax.make_jaxpr(otherwise)(*avals).out_avals[0]


def _mapped(args, axes, *, kernel, otherwise):
    over = lambda fn: jax.vmap(fn, axes)
    return _either.bind(*args, kernel=over(kernel), otherwise=over(otherwise)), 0


def _lower(ctx, *args, kernel, otherwise):
    return mlir.lower_fun(otherwise, multiple_results=False)(ctx, *args)


def _lower_for_tpu(ctx, *args, kernel, otherwise):
    one = getattr(ctx.module_context.axis_context, "num_devices", 1) == 1
    return mlir.lower_fun(kernel if one else otherwise, multiple_results=False)(ctx, *args)


batching.primitive_batchers[_either] = _mapped
mlir.register_lowering(_either, _lower)
mlir.register_lowering(_either, _lower_for_tpu, platform="tpu")
