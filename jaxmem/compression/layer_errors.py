"""errors: ‖x·(w − ŵ)‖² / ‖x·w‖² of each layer for every candidate, measured on a part of it."""

import contextlib
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ..codecs import Int
from ..codecs.integer import rounded
from ..core.arguments import OPTIONAL_MAPPING, TREE, takes
from ..core.byte_counts import shape_of
from ..core.codec import has_independent_rows, needs_stats, ties_layers
from ..core.fold import Fold, matrix_shape
from ..core.lazy import is_lazy
from ..core.leaf import is_encoded
from ..core.paths import check_same_tree, is_whole, paths
from ..core.usage import summed_axes
from .candidates import CANDIDATES, choices
from .joined_pieces import is_small

# An error is measured on this many rows of a weight, evenly spaced over its layers. Codecs that
# take long are measured on fewer rows of a few layers.
MEASURED_ROWS, LEAST_ROWS_OF_A_LAYER = 2048, 64
SLOW_LAYERS, SLOW_ROWS = 8, 1024
SMALL_ROWS = 512  # the least rows of a small matrix, with zeros: most of equal k share a program

Errors = Mapping[str, Mapping[Any, np.ndarray]]


@takes(params=TREE, uses=OPTIONAL_MAPPING, stats=OPTIONAL_MAPPING, known=OPTIONAL_MAPPING)
def errors(
    params: Any,
    candidates: Sequence[Any] | Mapping[str, Sequence[Any]] = CANDIDATES,
    *,
    uses: Mapping | None = None,
    stats: Mapping | None = None,
    known: Errors | None = None,
    white: bool = False,
) -> dict[str, dict[Any, np.ndarray]]:
    """{path: {codec: ‖x·(w − ŵ)‖² / ‖x·w‖² of each layer, (*stack)}} for the choices of `budget`.

    Codecs that encode each row by itself are measured on 2,048 rows, spread over the layers, at
    least 64 rows of each layer. Such codecs that need stats (`GPTQ`, `SparseGPT`) are measured on
    1,024 rows of 8 layers, evenly spaced, and codecs that see the whole matrix (`LowRank`, `QERA`)
    on all rows of these 8 layers; the other layers are interpolated. So a result is exact up to
    128 rows and 8 layers. ‖x·w‖² itself is computed from all rows if there are moments, since a
    few rows may be most of it. Abstract weights are taken to be normally distributed. The codecs of
    a weight are compiled together and share the factors of its Gram matrix.

    Args:
        params: a tree of dense weights: arrays, lazy leaves, or shapes.
        candidates: codecs for every matrix, or {regex: codecs}.
        uses: how the model uses each weight, from `jm.uses`.
        stats: the moments of each weight's input, from `jm.stats`. A weight without moments has
            the error of the weight itself.
        known: a result of an earlier call. An error that is in it, for as many layers, is not
            measured again: measure once, then choose for several limits, or for a model that
            shares weights with the first one.
        white: divide by the energy of a random weight of the same norm, not of the weight itself.

    Raises:
        ValueError: a rule matches no leaf; a codec cannot take a weight, or needs stats that are
            missing; a weight holds NaN or infinity.

    Example:
        >>> import jax, jaxmem as jm
        >>> params = {"w": jax.random.normal(jax.random.key(0), (5, 64, 64))}
        >>> found = jm.errors(params, [jm.Int(4), jm.Int(8)])["w"]
        >>> found[jm.Int(8)].shape, bool((found[jm.Int(8)] < found[jm.Int(4)] / 200).all())
        ((5,), True)
    """
    leaves = dict(zip(paths(params), jax.tree.leaves(params, is_leaf=is_whole)))
    check_same_tree(leaves, stats=stats, known=known)
    by_path = {}
    for path, codecs in choices(leaves, candidates, uses).items():
        with prefixed(path):
            leaf, axes = leaves[path], summed_axes(path, uses, leaves)
            stack = matrix_shape(shape_of(leaf), axes)[:-2]
            measured = (known or {}).get(path, {})
            measured = {
                c: measured[c] for c in codecs if c in measured and measured[c].shape == stack
            }
            missing = [c for c in dict.fromkeys(codecs) if c not in measured]
            if missing:
                new = _errors(leaf, axes, stack, missing, (stats or {}).get(path), white)
                measured |= {c: new[..., i] for i, c in enumerate(missing)}
            by_path[path] = measured
    return by_path


@contextlib.contextmanager
def prefixed(path: str) -> Iterator[None]:
    """Puts the path before the message of an error that the block raises."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise type(error)(f"{path}: {error}") from error


def _errors(leaf, axes, stack, codecs, moments, white) -> np.ndarray:
    """The errors (*stack, codecs) of one weight."""
    errors = np.full((*stack, len(codecs)), np.inf)  # what stays infinite is interpolated
    for codec in codecs:
        if moments is None and needs_stats(codec):
            raise ValueError(f"{codec} wants the stats of what the weight is fed, got none")
    abstract = isinstance(leaf, jax.ShapeDtypeStruct)
    tied = list(map(ties_layers, codecs))
    for i in np.flatnonzero(tied):
        errors[..., i] = _tied_errors(leaf, axes, codecs[i], moments, white)
    groups, slow_layers = _measured_alike(codecs, tied, math.prod(stack), abstract)
    n = matrix_shape(shape_of(leaf), axes)[-2]
    for number, (at, layer) in enumerate(_layers(leaf, len(stack))):
        layer_moments = jax.tree.map(lambda a: a[at], moments)  # noqa: B023
        energy = None
        for (count, slow), indices in groups.items():
            if slow and number not in slow_layers:
                continue
            group, rows = tuple(codecs[i] for i in indices), _rows(layer, axes, count)
            share = min(n, count or n) / max(n, 1) or 1.0
            if moments is None and isinstance(rows, np.ndarray):
                energy = np.square(rows, dtype=np.float64).sum() / share
            elif moments is None or abstract:
                energy = float(_energy(rows, layer_moments, white)) / share
            elif energy is None:  # from all rows, since a few of them may be most of it
                energy = _energy(_rows(layer, axes, None), layer_moments, white)
            lost = np.asarray(_lost(rows, layer_moments, group), np.float64) / share
            errors[(*at, indices)] = lost / max(float(energy), np.finfo(np.float32).tiny)
            for codec, error in zip(group, errors[(*at, indices)]):
                if not np.isfinite(error):
                    raise ValueError(f"it holds NaN, infinity or a number too large for {codec}")
        if abstract:
            errors[...] = errors[at]  # the layers of a shape are all alike
            break
    return _interpolated(errors)


def _measured_alike(codecs, tied, layers, abstract) -> tuple[dict, set]:
    """({(rows, whether slow): indices of codecs}, the layers where slow codecs are measured)."""
    last = max(layers - 1, 0)
    slow_layers = {round(i * last / (SLOW_LAYERS - 1)) for i in range(SLOW_LAYERS)}
    least = LEAST_ROWS_OF_A_LAYER
    rows = lambda total, layers: least if abstract else max(total // max(layers, 1), least)
    groups: dict = {}
    for i, codec in enumerate(codecs):
        if tied[i]:
            continue
        slow = needs_stats(codec) or not has_independent_rows(codec)
        measured = min(len(slow_layers), layers) if slow else layers
        count = rows(SLOW_ROWS if slow else MEASURED_ROWS, measured)
        count = count if has_independent_rows(codec) else None
        groups.setdefault((count, slow), []).append(i)
    return groups, slow_layers


def _interpolated(errors: np.ndarray) -> np.ndarray:
    """(*stack, codecs) with each infinite error replaced by interpolation along the stack."""
    flat = errors.reshape(-1, errors.shape[-1])
    place = np.arange(len(flat))
    for column in flat.T:
        known = np.isfinite(column)
        column[...] = np.interp(place, place[known], column[known])
    return flat.reshape(errors.shape)


def _tied_errors(leaf, axes, codec, moments, white) -> np.ndarray:
    """The errors (*stack) of a codec that encodes all layers together."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        leaf = np.random.default_rng(0).standard_normal(leaf.shape, np.float32)
    w = jnp.asarray(leaf.read(None) if is_lazy(leaf) else leaf)
    errors = np.asarray(_tied_relative(w, moments, codec, axes, white))
    if not np.isfinite(errors).all():
        raise ValueError(f"it holds NaN, infinity or a number too large for {codec}")
    return errors


def _layers(leaf, depth: int) -> Iterator[tuple]:
    """(index in the stack, weight) of each layer of a stack of `depth` axes, one in memory."""
    if is_lazy(leaf) and leaf.stacked:
        for i, part in enumerate(leaf.parts()):
            for rest in np.ndindex(part.shape[: depth - 1]):
                yield (i, *rest), part[rest]
        return
    whole = leaf.read(None) if is_lazy(leaf) else leaf  # in its stored dtype: rows are cast later
    for at in np.ndindex(whole.shape[:depth]):
        abstract = isinstance(whole, jax.ShapeDtypeStruct)
        yield at, jax.ShapeDtypeStruct(whole.shape[depth:], whole.dtype) if abstract else whole[at]


def _rows(layer, axes, count) -> np.ndarray | Array:
    """`count` rows of a layer's matrix (n, k), or all for None, in f32; fewer if n is less."""
    if isinstance(layer, jax.ShapeDtypeStruct):
        n, k = matrix_shape(layer, axes)
        layer = np.random.default_rng(0).standard_normal((min(n, count or n), k), np.float32)
        axes = (-1,)
    elif isinstance(layer, np.ndarray) and layer.ndim == 2 and axes in ((-1,), (-2,)):
        side = -1 - axes[0]
        n = layer.shape[side]
        if count and n > count:  # on the host, so that not the whole layer goes to the device
            layer = np.take(layer, np.arange(count) * n // count, side)
        if count and is_small(layer):  # without a program
            matrix = np.asarray(layer if side == 0 else layer.T, np.float32)
            n = min(n, count)
            return np.pad(matrix, ((0, max(SMALL_ROWS, n + _padding(n, count)) - n), (0, 0)))
    return _take_spaced_rows(layer, axes, count)


def _padding(n: int, count: int) -> int:
    """Rows of zeros after n: few shapes for all weights of equal k, so that few programs compile.

    Example:
        >>> _padding(172, 1024), _padding(8, 1024), _padding(100, 100)
        (84, 56, 0)
    """
    return min(max(1 << max(n - 1, 0).bit_length(), LEAST_ROWS_OF_A_LAYER), count) - n


@functools.partial(jax.jit, static_argnums=(1, 2))
def _take_spaced_rows(layer, axes, count) -> Array:
    matrix = Fold.from_weight(layer, axes)[0].astype(jnp.float32)
    n = matrix.shape[0]
    if count is None:
        return matrix
    if n < count:
        return jnp.pad(matrix, ((0, _padding(n, count)), (0, 0)))
    return matrix[np.arange(count) * n // count]


@functools.partial(jax.jit, static_argnums=2)
def _lost(w, moments, codecs) -> Array:
    """‖x·(w − ŵ)‖² of a matrix by each codec, (codecs,)."""
    lost = {}
    for (group, symmetric), alike in _integers_alike(codecs).items():
        loss = lambda bits: _energy(w - rounded(w, bits, group, symmetric), moments)  # noqa: B023
        losses = lax.map(loss, jnp.array([codec.bits for codec in alike]))
        lost |= dict(zip(alike, losses))
    for codec in codecs:
        if codec not in lost:
            encoded = codec.encode(w, (-1,), moments)
            decoded = encoded.decode() if is_encoded(encoded) else encoded
            lost[codec] = _energy(w - decoded, moments)
    return jnp.stack([lost[codec] for codec in codecs])


def _integers_alike(codecs) -> dict[tuple, list[Int]]:
    """The `Int` codecs by group and symmetry: those that differ in bits only share a program."""
    alike: dict = {}
    for codec in codecs:
        if isinstance(codec, Int):
            alike.setdefault((codec.group, codec.symmetric), []).append(codec)
    return alike


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _tied_relative(w, moments, codec, axes, white) -> Array:
    """‖x·(w − ŵ)‖² / ‖x·w‖² of each layer, (*stack)."""
    encoded = codec.encode(w, axes, moments).astype(jnp.float32)
    fold = lambda w: Fold.from_weight(w.astype(jnp.float32), axes)[0]
    matrix, decoded = fold(w), fold(encoded.decode())
    energy = {white: functools.partial(_energy, white=white) for white in (False, True)}
    for _ in range(matrix.ndim - 2):
        energy = {white: jax.vmap(fn) for white, fn in energy.items()}
    whole = energy[white](matrix, moments)
    lost = energy[False](matrix - decoded, moments)
    return lost / jnp.maximum(whole, jnp.finfo(jnp.float32).tiny)


@functools.partial(jax.jit, static_argnums=2)
def _energy(w, moments, white=False) -> Array:
    """‖x·w‖² of a matrix (n, k); if `white`, its mean over random matrices of the same norm."""
    second = jnp.ones(w.shape[1]) if moments is None else moments.second
    if white:
        mean = (jnp.trace(second) if second.ndim == 2 else second.sum()) / max(w.shape[1], 1)
        return mean * (w * w).sum()
    return ((w @ second if second.ndim == 2 else w * second[None]) * w).sum()
