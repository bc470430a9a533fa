"""A NumPy weight as an array of JAX in the same memory, so that none is copied."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.strided_weight import StridedWeight
from ..io.aligned_memory import ALIGNMENT, aligned

DTYPES = ("float32", "float16", "bfloat16")


def in_place(w: np.ndarray) -> jax.Array | None:
    """The array as JAX's, in the same memory; None where a CPU cannot read it there.

    It can where the memory is contiguous and begins at a multiple of 64 bytes. The array must not
    be written while a program reads it.

    Example:
        >>> from jaxmem.io.aligned_memory import aligned
        >>> w = aligned((1024, 1024), np.dtype("float32"))
        >>> in_place(w).unsafe_buffer_pointer() == w.ctypes.data, in_place(w.T)
        (True, None)
    """
    if jax.devices()[0].platform != "cpu" or w.dtype.name not in DTYPES or not w.size:
        return None
    if not w.flags.c_contiguous or w.ctypes.data % ALIGNMENT:
        return None
    with jax.ensure_compile_time_eval():
        return jax.device_put(w, may_alias=True)


def strided(w: np.ndarray) -> StridedWeight | None:
    """The array where it is, for codecs that read some rows at a time; None if a CPU cannot.

    It may be transposed, sliced, and begin at any number of its dtype.

    Example:
        >>> w = np.arange(40, dtype=np.float32)[3:33].reshape(5, 6).T
        >>> bool((strided(w).dense() == w).all()), strided(np.arange(9.0))
        (True, None)
    """
    if jax.devices()[0].platform != "cpu" or w.dtype.name not in DTYPES or not w.size:
        return None
    size = w.dtype.itemsize
    if w.ctypes.data % size or any(stride % size for stride in w.strides):
        return None
    upwards = w[tuple(slice(None, None, -1 if stride < 0 else 1) for stride in w.strides)]
    steps = [stride // size for stride in w.strides]
    span = 1 + sum((n - 1) * abs(step) for n, step in zip(w.shape, steps))
    if span >= 2**31:  # an index has 32 bits
        return None
    memory = np.lib.stride_tricks.as_strided(upwards, (span,), (size,)).view(f"u{size}")
    before = min(-memory.ctypes.data % ALIGNMENT // size, span)  # numbers that are not aligned
    head = np.zeros(ALIGNMENT // size, memory.dtype)
    head[len(head) - before :] = memory[:before]
    backwards = sum((n - 1) * -step for n, step in zip(w.shape, steps) if step < 0)
    first = np.int32(len(head) - before + backwards)
    with jax.ensure_compile_time_eval():
        flat = jax.device_put(memory[before:], may_alias=True)
        return StridedWeight(
            jnp.asarray(head), flat, jnp.asarray(first), w.shape, tuple(steps), w.dtype
        )


def copied(w: np.ndarray, dtype: Any) -> jax.Array:
    """The array as JAX's, copied once: from other memory than `aligned` JAX may copy it twice.

    Example:
        >>> copied(np.arange(6.0).reshape(2, 3).T, jnp.float32).tolist()
        [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
    """
    copy = aligned(w.shape, np.dtype(dtype))
    copy[...] = w
    with jax.ensure_compile_time_eval():
        return jax.device_put(copy, may_alias=True)


def without(shared: jax.Array, tree: Any) -> Any:
    """The tree with a copy of each array that lies where `shared` does.

    A program that returns an argument as it is returns the caller's memory.

    Example:
        >>> from jaxmem.io.aligned_memory import aligned
        >>> w = aligned((1024, 1024), np.dtype("float32"))
        >>> shared = in_place(w)
        >>> without(shared, [shared])[0].unsafe_buffer_pointer() == w.ctypes.data
        False
    """
    place = shared.unsafe_buffer_pointer()
    copied = lambda a: jnp.array(a) if a.unsafe_buffer_pointer() == place else a
    return jax.tree.map(copied, tree)
