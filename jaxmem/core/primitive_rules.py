"""RULES: a function for each primitive that has an encoded form, by the primitive's name.

A rule gives a leaf, an array, or NotImplemented: then the leaf is decoded. It takes the
primitive's operands, some of them leaves, and its parameters. The stack axes of a leaf are axes of
all arrays inside, so an operation on them is done on each array.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .concatenated import Concatenated
from .encoded_product import dot
from .leaf import is_encoded, separate_shared


def _dot_rule(x, w, *, dimension_numbers, precision, preferred_element_type, **_):
    y = dot(
        x, w, dimension_numbers, precision=precision, preferred_element_type=preferred_element_type
    )
    return NotImplemented if y is None else y


def _convolution(x, w, *, dimension_numbers, **kwargs):
    if is_encoded(x) or not is_encoded(w):
        return NotImplemented
    return w.convolve(x, dimension_numbers, **kwargs)


def _on_stack(leaf, axes) -> bool:
    """Whether all of `axes` are stack axes of the leaf."""
    return is_encoded(leaf) and all(a < len(leaf.stack) for a in axes)


def _on_arrays(fn, leaf):
    """The leaf with `fn` applied to every array inside that has the stack's axes."""
    arrays, rebuild = separate_shared(leaf)
    return rebuild(jax.tree.map(fn, arrays))


def _gather(w, index, *, dimension_numbers, slice_sizes, mode, fill_value, **_):
    # 1. Only a look-up of whole rows, w[index], has an encoded form.
    d = dimension_numbers
    if not is_encoded(w) or is_encoded(index):
        return NotImplemented
    if (
        d.operand_batching_dims
        or d.start_index_map != d.collapsed_slice_dims
        or index.shape[-1] != 1
    ):
        return NotImplemented
    index_ndim = index.ndim - 1
    whole_rows = slice_sizes == (1, *w.shape[1:]) and d.start_index_map == (0,)
    if not whole_rows or d.offset_dims != tuple(range(index_ndim, index_ndim + w.ndim - 1)):
        return NotImplemented
    rows, fills = index[..., 0], mode is lax.GatherScatterMode.FILL_OR_DROP
    fill_value = jnp.nan if fill_value is None else fill_value

    # 2. Rows of the stack are layers. NaN for those outside it can fill the arrays inside.
    if _on_stack(w, (0,)) and (math.isnan(fill_value) or not fills):
        take = lambda a: a.at[rows].get(mode=mode, wrap_negative_indices=False)
        return _on_arrays(take, w)

    # 3. Other rows are taken by the leaf, and filled where the index is outside.
    values = w.take(jnp.clip(rows, 0, w.shape[0] - 1))
    if values is NotImplemented or not fills:
        return values
    inside = ((rows >= 0) & (rows < w.shape[0])).reshape(*rows.shape, *(1,) * (w.ndim - 1))
    return jnp.where(inside, values, fill_value)


def _convert(w, *, new_dtype, **_):
    return w.astype(new_dtype) if jnp.issubdtype(new_dtype, jnp.floating) else NotImplemented


def _slice(w, *, start_indices, limit_indices, strides):
    strides = strides or (1,) * w.ndim
    sliced_axes = [
        i
        for i in range(w.ndim)
        if (start_indices[i], limit_indices[i], strides[i]) != (0, w.shape[i], 1)
    ]
    if not _on_stack(w, sliced_axes):
        size = limit_indices[0] - start_indices[0]
        return _one_row(w, sliced_axes, size, start_indices[0])
    index = tuple(slice(*bounds) for bounds in zip(start_indices, limit_indices, strides))
    return _on_arrays(lambda a: a[index[: len(w.stack)]], w)


def _dynamic_slice(w, *starts, slice_sizes, **_):
    sliced_axes = [i for i in range(w.ndim) if slice_sizes[i] != w.shape[i]]
    if any(map(is_encoded, starts)):
        return NotImplemented
    if not _on_stack(w, sliced_axes):
        return _one_row(w, sliced_axes, slice_sizes[0], starts[0])
    n_stack = len(w.stack)
    zero = [jnp.zeros((), jnp.asarray(starts[0]).dtype)] if starts else []
    return _on_arrays(
        lambda a: lax.dynamic_slice(
            a,
            [*starts[:n_stack], *zero * (a.ndim - n_stack)],
            (*slice_sizes[:n_stack], *a.shape[n_stack:]),
        ),
        w,
    )


def _one_row(w, sliced_axes, size, start):
    """A slice of one row, by `take`. A longer slice may be nearly the whole weight: it decodes."""
    if sliced_axes != [0] or size != 1:
        return NotImplemented
    return w.take(jnp.clip(jnp.asarray(start), 0, w.shape[0] - 1)[None])


def _squeeze(w, *, dimensions):
    if not _on_stack(w, dimensions):
        return w.reshape(tuple(d for i, d in enumerate(w.shape) if i not in dimensions))
    return _on_arrays(lambda a: lax.squeeze(a, dimensions), w)


def _broadcast(w, *dyn, shape, broadcast_dimensions, **_):
    # Only the stack may become larger: the axes after it stay the last ones, with their sizes.
    n_stack, n_inner = len(w.stack), w.ndim - len(w.stack)
    n_new = len(shape) - n_inner  # stack axes of the result
    inner_stays = tuple(broadcast_dimensions[n_stack:]) == tuple(range(n_new, len(shape)))
    if dyn or not inner_stays or tuple(shape[n_new:]) != w.shape[n_stack:]:
        return NotImplemented

    def widen(a):
        dims = (*broadcast_dimensions[:n_stack], *range(n_new, n_new + a.ndim - n_stack))
        return lax.broadcast_in_dim(a, (*shape[:n_new], *a.shape[n_stack:]), dims)

    return _on_arrays(widen, w)


def _reshape(w, *dyn, new_sizes, dimensions=None, **_):
    if dyn or dimensions is not None:
        return NotImplemented
    # If only the stack changes, each array is reshaped; else the leaf is asked.
    n_stack = len(w.stack)
    n_new = len(new_sizes) - w.ndim + n_stack  # stack axes of the result
    inner_stays = n_new >= 0 and new_sizes[n_new:] == w.shape[n_stack:]
    if inner_stays and math.prod(new_sizes[:n_new]) == math.prod(w.stack):
        return _on_arrays(lambda a: a.reshape(*new_sizes[:n_new], *a.shape[n_stack:]), w)
    return w.reshape(tuple(new_sizes))


def _joined(join, leaves, on_stack):
    """Leaves of equal structure joined along their stacks by `join`, array by array."""
    if not all(map(is_encoded, leaves)):
        return NotImplemented
    if any(separate_shared(leaf)[0] is not leaf for leaf in leaves):
        return NotImplemented  # layers share a weight
    if len({jax.tree.structure(leaf) for leaf in leaves}) > 1:
        return NotImplemented
    return jax.tree.map(join, *leaves) if on_stack else NotImplemented


def _concatenate(*ws, dimension):
    join = lambda *arrays: lax.concatenate(arrays, dimension)
    joined = _joined(join, ws, _on_stack(ws[0], (dimension,)))
    matrices = joined is NotImplemented and ws[0].ndim > 1
    return Concatenated(ws, dimension) if matrices else joined


def _stack(*ws, axis):
    return _joined(lambda *arrays: jnp.stack(arrays, axis), ws, _on_stack(ws[0], range(axis)))


def _split(w, *, sizes, axis):
    if not _on_stack(w, (axis,)):
        return NotImplemented
    ends = np.cumsum(sizes)
    part = lambda end, size: _on_arrays(
        lambda a: lax.slice_in_dim(a, end - size, end, axis=axis), w
    )
    return [part(int(end), int(size)) for end, size in zip(ends, sizes)]


def _unstack(w, *, axis):
    if not _on_stack(w, (axis,)):
        return NotImplemented
    return [
        _on_arrays(lambda a: lax.index_in_dim(a, i, axis, keepdims=False), w)  # noqa: B023
        for i in range(w.shape[axis])
    ]


def _device_put(*operands, devices, **_):
    """Arrays of a leaf go to the device or the memory; a sharding of the dense array is a hint."""

    def put(x, place):
        if is_encoded(x) and isinstance(place, jax.sharding.NamedSharding):
            on_host = place.memory_kind in ("pinned_host", "unpinned_host")
            place = jax.memory.Space.Host if on_host else jax.memory.Space.Device
        return jax.tree.map(lambda a: jax.device_put(a, place), x)

    return [put(x, place) for x, place in zip(operands, devices)]


def _reduce_precision(w, *, exponent_bits, mantissa_bits):
    kind = jnp.finfo(w.dtype)
    return w if exponent_bits >= kind.nexp and mantissa_bits >= kind.nmant else NotImplemented


def _rev(w, *, dimensions):
    if all(w.shape[a] == 1 for a in dimensions):
        return w
    reverse = lambda a: lax.rev(a, dimensions)
    return _on_arrays(reverse, w) if _on_stack(w, dimensions) else NotImplemented


def _pad(w, value, *, padding_config):
    by_nothing = all(
        low == high == 0 and (gap == 0 or n < 2)
        for n, (low, high, gap) in zip(w.shape, padding_config)
    )
    return w if is_encoded(w) and by_nothing else NotImplemented


def _transpose(w, *, permutation):
    in_order = tuple(permutation) == tuple(range(w.ndim))
    return w if in_order else w.transpose(tuple(permutation))


RULES = {
    "dot_general": _dot_rule,
    "conv_general_dilated": _convolution,
    "convert_element_type": _convert,
    "transpose": _transpose,
    "rev": _rev,
    "pad": _pad,
    "reshape": _reshape,
    "squeeze": _squeeze,
    "broadcast_in_dim": _broadcast,
    "slice": _slice,
    "dynamic_slice": _dynamic_slice,
    "concatenate": _concatenate,
    "stack": _stack,
    "split": _split,
    "unstack": _unstack,
    "gather": _gather,
    "stop_gradient": lambda w: w.stop_gradient(),
    "device_put": _device_put,
    "reduce_precision": _reduce_precision,
    "bitcast_convert_type": lambda w, *, new_dtype: w if new_dtype == w.dtype else NotImplemented,
    # hints of where the array lies, and copies
    **dict.fromkeys(
        ("sharding_constraint", "layout_constraint", "reshard", "pvary", "copy", "copy_p", "name"),
        lambda w, **_: w,
    ),
}
