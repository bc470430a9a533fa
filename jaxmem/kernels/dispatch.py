"""on_one_chip: a Pallas kernel where it can run, its XLA form everywhere else.

XLA's partitioner cannot divide a kernel, so a program for several chips that holds one does not
compile. The chips of a program are known when it is lowered, not when it is traced. So the choice
is a primitive, which is lowered to the kernel or to the XLA form.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

_kernel_or_xla = Primitive("kernel_or_not")


def on_one_chip(kernel: Callable, otherwise: Callable, *args: Any) -> Array:
    """`kernel(*args)` for one TPU chip, or inside `shard_map`; `otherwise(*args)` elsewhere.

    Both functions take pytrees of arrays and give one array of the same shape and dtype. This works
    under `jit` and `vmap`; the caller defines the gradient.

    Example:
        >>> import jax.numpy as jnp
        >>> float(on_one_chip(lambda x: x * 2, lambda x: x + x, jnp.ones(())))
        2.0
    """
    flat, tree = jax.tree.flatten(args)  # a primitive takes arrays, no pytrees
    of_arrays = lambda fn: lambda *flat: fn(*tree.unflatten(flat))
    return _kernel_or_xla.bind(*flat, kernel=of_arrays(kernel), otherwise=of_arrays(otherwise))


@_kernel_or_xla.def_impl
def _run(*args, kernel, otherwise):
    return jax.jit(lambda *args: _kernel_or_xla.bind(*args, kernel=kernel, otherwise=otherwise))(
        *args
    )


@_kernel_or_xla.def_abstract_eval
def _shape(*avals, kernel, otherwise):
    return jax.make_jaxpr(otherwise)(*avals).out_avals[0]


def _batch(args, axes, *, kernel, otherwise):
    """Under `vmap` along `axes`: (the result, its axis of the batch)."""
    mapped = lambda fn: jax.vmap(fn, axes)
    return _kernel_or_xla.bind(*args, kernel=mapped(kernel), otherwise=mapped(otherwise)), 0


def _lower(ctx, *args, kernel, otherwise):
    return mlir.lower_fun(otherwise, multiple_results=False)(ctx, *args)


def _lower_for_tpu(ctx, *args, kernel, otherwise):
    one_chip = getattr(ctx.module_context.axis_context, "num_devices", 1) == 1
    return mlir.lower_fun(kernel if one_chip else otherwise, multiple_results=False)(ctx, *args)


batching.primitive_batchers[_kernel_or_xla] = _batch
mlir.register_lowering(_kernel_or_xla, _lower)
mlir.register_lowering(_kernel_or_xla, _lower_for_tpu, platform="tpu")
