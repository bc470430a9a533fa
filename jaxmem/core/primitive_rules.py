"""What each primitive does to an encoded leaf, by name: a leaf, an array, or NotImplemented."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .leaf import decode, is_encoded, separate_shared


def decoded(op, *vals):
    """`op` on the decoded values, so that `grad` keeps the encoded weight and not the dense one."""
    return jax.checkpoint(lambda *vals: op(*decode(tied(vals))))(*vals)


def tied(vals):
    """Ties the weights to the other operands: else XLA may decode every layer up front."""
    return lax.optimization_barrier(vals) if len(vals) > 1 else vals


def dot(x, w, dims, **kwargs):
    """The encoded side's own product; None where it has none."""
    if is_encoded(x) == is_encoded(w):
        return None
    left = is_encoded(x)
    if left:  # put the weight on the right, then the axes back
        x, w, dims = w, x, tuple(pair[::-1] for pair in dims)

    def product(x, w):
        y = w.dot(x, dims, **kwargs)
        return None if y is NotImplemented else y

    # the gradient keeps the weight that came in, which a scan need not copy; a tie would keep a
    # TPU from reading a layer's stored numbers where they lie in the stack
    given = (lambda vals: vals) if w.read_as_stored else tied
    again = jax.checkpoint(lambda x, w: product(*given((x, w))))
    y = (again if w.recomputed else product)(x, w)
    if y is None or not left:
        return y
    first = len(dims[1][0])
    middle = first + x.ndim - len(dims[0][0]) - first
    return jnp.moveaxis(y, range(middle, y.ndim), range(first, first + y.ndim - middle))


def _dot_rule(x, w, *, dimension_numbers, precision, preferred_element_type, **_):
    y = dot(
        x, w, dimension_numbers, precision=precision, preferred_element_type=preferred_element_type
    )
    return NotImplemented if y is None else y


def _on_stack(leaf, axes):
    """Whether all of `axes` are stack axes of the leaf."""
    return is_encoded(leaf) and all(a < len(leaf.stack) for a in axes)


def _each(fn, leaf):
    """`fn` on every array inside, on the stack axes they share."""
    own, back = separate_shared(leaf)
    return back(jax.tree.map(fn, own))


def _gather(w, index, *, dimension_numbers, slice_sizes, mode, fill_value, **_):
    d = dimension_numbers
    if not is_encoded(w) or is_encoded(index):
        return NotImplemented
    if (
        d.operand_batching_dims
        or d.start_index_map != d.collapsed_slice_dims
        or index.shape[-1] != 1
    ):
        return NotImplemented
    rows = index.ndim - 1
    whole = slice_sizes == (1, *w.shape[1:]) and d.start_index_map == (0,)
    if not whole or d.offset_dims != tuple(range(rows, rows + w.ndim - 1)):
        return NotImplemented
    rows, fills = index[..., 0], mode is lax.GatherScatterMode.FILL_OR_DROP
    fill_value = jnp.nan if fill_value is None else fill_value
    if _on_stack(w, (0,)) and (math.isnan(fill_value) or not fills):  # NaN can fill each array
        take = lambda a: a.at[rows].get(mode=mode, wrap_negative_indices=False)
        return _each(take, w)
    got = w.take(jnp.clip(rows, 0, w.shape[0] - 1))
    if got is NotImplemented or not fills:
        return got
    inside = ((rows >= 0) & (rows < w.shape[0])).reshape(*rows.shape, *(1,) * (w.ndim - 1))
    return jnp.where(inside, got, fill_value)


def _convert(w, *, new_dtype, **_):
    return w.astype(new_dtype) if jnp.issubdtype(new_dtype, jnp.floating) else NotImplemented


def _slice(w, *, start_indices, limit_indices, strides):
    strides = strides or (1,) * w.ndim
    cut = [
        i
        for i in range(w.ndim)
        if (start_indices[i], limit_indices[i], strides[i]) != (0, w.shape[i], 1)
    ]
    if not _on_stack(w, cut):
        return _one_row(w, cut, limit_indices[0] - start_indices[0], start_indices[0])
    index = tuple(slice(*t) for t in zip(start_indices, limit_indices, strides))
    return _each(lambda a: a[index[: len(w.stack)]], w)


def _dynamic_slice(w, *starts, slice_sizes, **_):
    cut = [i for i in range(w.ndim) if slice_sizes[i] != w.shape[i]]
    if any(map(is_encoded, starts)):
        return NotImplemented
    if not _on_stack(w, cut):
        return _one_row(w, cut, slice_sizes[0], starts[0])
    s = len(w.stack)
    zero = [jnp.zeros((), jnp.asarray(starts[0]).dtype)] if starts else []
    return _each(
        lambda a: lax.dynamic_slice(
            a, [*starts[:s], *zero * (a.ndim - s)], (*slice_sizes[:s], *a.shape[s:])
        ),
        w,
    )


def _one_row(w, cut, size, start):
    """A slice that is a look-up; a longer one might be nearly all, and that is a decode."""
    if cut != [0] or size != 1:
        return NotImplemented
    return w.take(jnp.clip(jnp.asarray(start), 0, w.shape[0] - 1)[None])


def _squeeze(w, *, dimensions):
    if not _on_stack(w, dimensions):
        return w.reshape(tuple(d for i, d in enumerate(w.shape) if i not in dimensions))
    return _each(lambda a: lax.squeeze(a, dimensions), w)


def _broadcast(w, *dyn, shape, broadcast_dimensions, **_):
    s, core = len(w.stack), w.ndim - len(w.stack)
    n = len(shape) - core
    keeps = tuple(broadcast_dimensions[s:]) == tuple(range(n, len(shape)))
    if dyn or not keeps or tuple(shape[n:]) != w.shape[s:]:
        return NotImplemented

    def widen(a):
        dims = (*broadcast_dimensions[:s], *range(n, n + a.ndim - s))
        return lax.broadcast_in_dim(a, (*shape[:n], *a.shape[s:]), dims)

    return _each(widen, w)


def _reshape(w, *dyn, new_sizes, dimensions=None, **_):
    s = len(w.stack)
    n = len(new_sizes) - w.ndim + s
    if dyn or dimensions is not None:
        return NotImplemented
    if n >= 0 and new_sizes[n:] == w.shape[s:] and math.prod(new_sizes[:n]) == math.prod(w.stack):
        return _each(lambda a: a.reshape(*new_sizes[:n], *a.shape[s:]), w)
    return w.reshape(tuple(new_sizes))


def _joined(join, ws, is_inside):
    """Leaves of equal structure joined along their stacks."""
    if not all(map(is_encoded, ws)) or any(separate_shared(w)[0] is not w for w in ws):
        return NotImplemented
    if len({jax.tree.structure(w) for w in ws}) > 1:
        return NotImplemented
    return jax.tree.map(join, *ws) if is_inside else NotImplemented


def _concatenate(*ws, dimension):
    join = lambda *arrays: lax.concatenate(arrays, dimension)
    return _joined(join, ws, _on_stack(ws[0], (dimension,)))


def _stack(*ws, axis):
    return _joined(lambda *arrays: jnp.stack(arrays, axis), ws, _on_stack(ws[0], range(axis)))


def _split(w, *, sizes, axis):
    if not _on_stack(w, (axis,)):
        return NotImplemented
    ends = np.cumsum(sizes)
    cut = lambda end, size: _each(lambda a: lax.slice_in_dim(a, end - size, end, axis=axis), w)
    return [cut(int(end), int(size)) for end, size in zip(ends, sizes)]


def _unstack(w, *, axis):
    if not _on_stack(w, (axis,)):
        return NotImplemented
    return [
        _each(lambda a: lax.index_in_dim(a, i, axis, keepdims=False), w)  # noqa: B023
        for i in range(w.shape[axis])
    ]


RULES = {
    "dot_general": _dot_rule,
    "convert_element_type": _convert,
    "transpose": lambda w, *, permutation: w.transpose(tuple(permutation)),
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
    "sharding_constraint": lambda w, **_: w,
    "copy": lambda w, **_: w,
    "copy_p": lambda w, **_: w,
    "name": lambda w, **_: w,
}
