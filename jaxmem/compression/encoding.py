"""encode: the params with each weight of a plan encoded, one layer dense at a time."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import codecs
from ..calibration.statistics import Moments
from ..codecs.fake_quantization import FakeArray
from ..core.arguments import MAPPING, OPTIONAL_MAPPING, TREE, takes
from ..core.codec import has_independent_rows, is_codec, needs_stats, ties_layers
from ..core.fold import matrix_shape
from ..core.lazy import Lazy, is_lazy
from ..core.leaf import is_array, is_dense_float, is_encoded
from ..core.padded import padded_encoder
from ..core.paths import check_same_tree, is_whole, paths
from ..core.row_slices import as_bits, first_kept_axis, scan_rows
from ..core.segmented import Segmented
from ..core.strided_weight import StridedWeight
from ..core.usage import summed_axes
from .joined_pieces import joined
from .leaf_shapes import abstract_leaf
from .plan_paths import by_layer
from .quick_programs import QUICK_AND_VECTORIZED, QUICK_TO_COMPILE
from .row_blocks import encode_in_blocks
from .searched_groups import is_search, search_by_groups
from .shape_classes import encode_in_class, has_class
from .shared_memory import copied, in_place, strided, without

DENSE_WEIGHTS = 2**21  # weights of a large matrix that are dense at a time
FEW_WEIGHTS = 2**18  # for so few, a program takes longer to compile than to run
OPTIMIZED_WEIGHTS = 2**14  # from so many on, a program that weights share is worth optimizing


@takes(params=TREE, plan=MAPPING, uses=OPTIONAL_MAPPING, stats=OPTIONAL_MAPPING)
def encode(
    params: Any, plan: Mapping[str, Any], uses: Mapping | None = None, stats: Mapping | None = None
) -> Any:
    """The params with each leaf that the plan names encoded, and all other leaves unchanged.

    `uses` gives the axes that each weight is summed over; a plan of `budget`, or of `choose` with
    `uses`, carries them. Without both it is the second last axis, as in a kernel of `Dense`, or a
    stack of them. It is the last one of a table, such as `embedding` or `wte`, and the first ones
    of a kernel of which the shape of the `bias` says so, as in attention and convolutions. A
    `kernel` of more axes without such a bias, in a module whose other weights show no stack, is
    refused; so is another weight of more axes, if its first one is as long as a later axis of some
    weight, and so may be a width.

    `stats` gives the moments that a calibrated codec needs. If the params are abstract, the result
    is abstract. Lazy params are read one layer at a time, and lazy leaves that the plan does not
    name are loaded.

    Raises:
        ValueError: the plan names a path that is not in `params`; a weight cannot take its codec;
            a weight is too large for its scales; a weight or its stats hold NaN or infinity; the
            stats have another length or stack than the weight; `uses` is wanted, or `uses` or
            `stats` are those of another tree. The message names the path.
        TypeError: a weight holds no floats, or the plan's value is no codec. The message names the
            path.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> params = {"kernel": jnp.ones((32, 32)), "bias": jnp.ones(32)}
        >>> jm.nbytes(jm.encode(params, {"kernel": jm.Int(4)}))
        704
    """
    leaves, tree = jax.tree.flatten(params, is_leaf=is_whole)
    names = paths(params)
    by_path = dict(zip(names, leaves))
    check_same_tree(names, uses=uses, stats=stats)
    codecs = by_layer(plan, {name: getattr(x, "shape", ()) for name, x in zip(names, leaves)})
    out = []
    for path, leaf in zip(names, leaves):
        codec = codecs.get(path)
        moments = (stats or {}).get(path)
        axes = None
        if codec is not None:
            axes = summed_axes(path, uses, by_path, getattr(plan, "axes", None))
        try:
            for one in [c for *_, c in codec] if isinstance(codec, list) else [codec]:
                if one is not None:
                    _check_inputs(one, leaf, axes, moments)
            if isinstance(codec, list):
                runs = (_encode_run(leaf, *run, axes, moments) for run in codec)
                out.append(Segmented(tuple(runs)))
            else:
                out.append(_load(leaf) if codec is None else _encode(codec, leaf, axes, moments))
        except (ValueError, TypeError) as e:
            kind = TypeError if isinstance(e, TypeError) else ValueError  # JAX raises subclasses
            raise kind(f"{path}: {e}") from e
    return tree.unflatten(out)


def _load(leaf):
    """A leaf that stays dense, read if it is lazy."""
    return leaf.load() if is_lazy(leaf) else leaf


def _encode_run(leaf, start, stop, codec, axes, stats):
    """Layers [start, stop) of a stacked leaf, encoded by a codec, or dense if the codec is None."""
    shape = (stop - start, *leaf.shape[1:])
    if is_lazy(leaf):
        if not leaf.stacked:
            raise ValueError("the plan tells its layers apart, and it is no stack")
        part = Lazy(shape, leaf.dtype, lambda i: leaf.read(start + i), stacked=True)
    elif isinstance(leaf, jax.ShapeDtypeStruct):
        part = jax.ShapeDtypeStruct(shape, leaf.dtype)
    else:
        part = leaf.layers(start, stop) if is_encoded(leaf) else leaf[start:stop]
    stats = jax.tree.map(lambda a: a[start:stop], stats)
    return _load(part) if codec is None else _encode(codec, part, axes, stats)


def _check_inputs(codec, w, axes, stats):
    """Refuses a value that is no codec, a weight without floats, and stats of another weight."""
    if not is_codec(codec):
        raise TypeError(f"{codec!r} is no codec, expected one such as Int(4)")
    if is_encoded(w):
        return
    if not (is_dense_float(w) or isinstance(codec, codecs.Keep)):
        kind = w.dtype if is_array(w) else type(w).__name__
        raise TypeError(f"the weight is of {kind}, expected floats")
    if stats is None or len(set(axes)) < len(axes) or not all(-w.ndim <= a < w.ndim for a in axes):
        return
    moments = isinstance(stats, Moments)  # otherwise a gradient, folded like the weight
    like = jax.ShapeDtypeStruct(w.shape, w.dtype)
    *stack, _, k = matrix_shape(like, axes)
    *stats_stack, length = stats.mean.shape if moments else (*stats.shape[:-2], stats.shape[-1])
    if k != length:
        raise ValueError(f"the stats are of vectors of {length}, and the weight sums over {k}")
    if stack != stats_stack:
        raise ValueError(
            f"the stats are of a stack {(*stats_stack,)}, and the weight of {(*stack,)}"
        )
    numbers = stats.second if moments else stats
    if isinstance(numbers, jax.ShapeDtypeStruct | jax.core.Tracer):
        return
    with jax.ensure_compile_time_eval():  # the stats are concrete also where the weight is traced
        finite = bool(jnp.isfinite(numbers).all())
    if not finite:
        raise ValueError("the stats hold NaN or infinity, expected finite numbers")


def _encode(codec, leaf, axes, stats):
    """One leaf of any kind encoded: lazy, concrete, abstract, traced, or a trained `Fake`."""
    if isinstance(leaf, FakeArray) and leaf.codec == codec:
        return leaf.encoded()
    if is_lazy(leaf):
        return _encode_lazy(codec, leaf, axes, stats)
    if isinstance(leaf, np.ndarray) and leaf.size > DENSE_WEIGHTS:
        return _encode_lazy(codec, _lazy(leaf, axes), axes, stats)
    if isinstance(leaf, np.ndarray | jax.Array) and not isinstance(leaf, jax.core.Tracer):
        return _encode_concrete(codec, leaf, axes, stats)
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.eval_shape(lambda w: codec.encode(w, axes, stats), leaf)
    return codec.encode(leaf, axes, stats)


def _encode_concrete(codec, w, axes, stats):
    """A weight in memory, encoded by a compiled program and checked for NaN and infinity."""
    if stats is None and needs_stats(codec):
        # Raises first if the codec cannot take this weight at all, with or without stats.
        _abstract(codec, w, axes, None)
        raise ValueError(f"{codec} wants the stats of what the weight is fed, got none")
    is_small = _is_small_on_cpu(w)
    run = _quickly_compiled if is_small else _compiled
    if is_small and stats is None and has_class(codec, w):
        if is_search(codec) and w.size:
            encoded, finite, finite_parts = search_by_groups(codec, axes, w)
        else:
            encoded, finite, finite_parts = encode_in_class(_run_shared, codec, axes, w)
    else:
        encoded, finite, finite_parts = run(codec, axes, w, stats)
    if isinstance(finite, jax.core.Tracer):  # a traced function closes over a concrete weight
        with jax.ensure_compile_time_eval():
            finite, finite_parts = _is_finite(w), True
    if not finite:
        raise ValueError("the weight holds NaN or infinity, expected finite numbers")
    if not finite_parts:
        part = next(part for part in jax.tree.leaves(encoded) if not _is_finite(part))
        raise ValueError(f"the weight is too large for {part.dtype} scales or values")
    return encoded


def _encode_and_check(codec, axes, w, stats, number=None):
    """The encoded leaf, and whether `w` and the leaf are finite: one program for each shape.

    `number` is that of a padded matrix's `PaddedEncoder`.
    """
    if number is None:
        encoded = encode_in_blocks(codec, w, axes, stats)
    else:
        encoded = padded_encoder(codec).encode(w, number)
    return encoded, _is_finite(w), _is_finite(encoded)


_compiled = jax.jit(_encode_and_check, static_argnums=(0, 1))
_quickly_compiled = jax.jit(
    _encode_and_check, static_argnums=(0, 1), compiler_options=QUICK_TO_COMPILE
)
_compiled_to_share = jax.jit(
    _encode_and_check, static_argnums=(0, 1), compiler_options=QUICK_AND_VECTORIZED
)


def _run_shared(codec, axes, padded, stats, number):
    """The leaf of a padded matrix, by a program that other weights are likely to use too."""
    run = _quickly_compiled if padded.size < OPTIMIZED_WEIGHTS else _compiled_to_share
    return run(codec, axes, padded, stats, number)


def _is_small_on_cpu(w) -> bool:
    """Whether a program for this weight may be compiled on its own, for a CPU, with own options."""
    inside_another = isinstance(jnp.zeros(()), jax.core.Tracer)
    if w.size > FEW_WEIGHTS or inside_another or isinstance(w, StridedWeight):
        return False
    device = jax.devices()[0] if isinstance(w, np.ndarray) else next(iter(w.devices()))
    return device.platform == "cpu"


def _is_finite(tree):
    """Whether all floats of a tree are finite, as an array of one bool."""
    leaves = jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, StridedWeight))
    floats = [x for x in leaves if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.array([_all_finite(x) for x in floats]).all()


def _all_finite(x):
    """Whether an array or a `StridedWeight` has neither NaN nor infinity.

    bf16 is read as bits: the compiler of a CPU would convert all of it to f32.
    """
    if isinstance(x, StridedWeight):
        of_rows = lambda finite, rows, _: finite & _all_finite(rows)
        return scan_rows(of_rows, jnp.bool(True), x, tuple(range(1 - x.ndim, 0)))
    if x.dtype != jnp.bfloat16:
        return jnp.isfinite(x).all()
    exponent = jnp.uint16(0x7F80)
    return (as_bits(x) & exponent != exponent).all()


def _lazy(w: np.ndarray, axes) -> Lazy:
    """A NumPy array as a lazy leaf, so that only parts of it are copied for JAX."""
    stacked = len(matrix_shape(w, axes)) > 2
    return Lazy(w.shape, w.dtype, lambda i: w if i is None else w[i], stacked)


def _encode_lazy(codec, leaf: Lazy, axes, stats):
    """Reads and encodes one layer at a time, so that one layer is dense; all of them if tied."""
    axes = tuple(a - leaf.ndim if a >= 0 else a for a in axes)
    whole = _abstract(codec, leaf, axes, stats)
    if not is_encoded(whole):
        return leaf.load()
    if not leaf.stacked or ties_layers(codec):
        w = leaf.load() if leaf.stacked else leaf.read(None)
        return _encode_rows(codec, w, leaf.dtype, axes, stats)
    moments = lambda i: jax.tree.map(lambda a: a[i : i + 1], stats)
    layer = lambda i: _encode_rows(codec, leaf.read(i)[None], leaf.dtype, axes, moments(i))
    return joined(whole, map(layer, range(leaf.shape[0])))


def _encode_rows(codec, w: np.ndarray, dtype, axes, stats):
    """Encodes a large matrix where it is, or some rows at a time if each is encoded alone."""
    shared = in_place(w) if w.size > DENSE_WEIGHTS and w.dtype == dtype else None
    if shared is not None:
        return without(shared, _encode_concrete(codec, shared, axes, stats))
    encode = lambda part: _encode(codec, copied(part, dtype), axes, stats)
    axis, rows = first_kept_axis(w, axes)
    unit = 8 // math.gcd(rows, 8)  # whole bytes of packed codes
    if w.size > DENSE_WEIGHTS and not has_independent_rows(codec) and w.dtype == dtype:
        in_memory = strided(w)
        return encode(w) if in_memory is None else _encode_concrete(codec, in_memory, axes, stats)
    if w.size <= DENSE_WEIGHTS or w.shape[axis] <= unit or not has_independent_rows(codec):
        return encode(w)
    step = max(1, DENSE_WEIGHTS // (w.size // w.shape[axis] * unit)) * unit
    cut = lambda at: w[(slice(None),) * axis + (slice(at, at + step),)]
    block = lambda at: encode(cut(at))
    whole = _abstract(codec, jax.ShapeDtypeStruct(w.shape, dtype), axes, stats)
    return joined(whole, map(block, range(0, w.shape[axis], step)))


def _abstract(codec, w, axes, stats):
    """The shapes of the encoded leaf."""
    if stats is None:
        return abstract_leaf(codec, tuple(axes), tuple(w.shape), jnp.dtype(w.dtype))
    shape = jax.ShapeDtypeStruct(w.shape, w.dtype)
    return jax.eval_shape(lambda w: codec.encode(w, axes, stats), shape)
