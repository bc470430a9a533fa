"""errors: ‖x·(w − ŵ)‖² / ‖x·w‖² of each layer for every candidate, measured on a part of it."""

import contextlib
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..codecs import Int
from ..core.codec import has_independent_rows, needs_stats, ties_layers
from ..core.fold import Fold, matrix_shape
from ..core.lazy import is_lazy
from ..core.leaf import is_encoded
from ..core.paths import is_whole, match, paths
from ..core.usage import summed_axes

CANDIDATES = tuple(Int(b, group=g, symmetric=False) for b in range(3, 9) for g in (64, 128))
ROWS = 2048  # of a weight, evenly spaced over its layers, that an error is measured on
FEWEST_ROWS = 64  # of each layer
FEW_LAYERS, FEW_ROWS = 8, 1024  # the same where it takes long; layers evenly spaced too

Errors = Mapping[str, Mapping[Any, np.ndarray]]


def errors(
    params: Any,
    candidates: Sequence[Any] | Mapping[str, Sequence[Any]] = CANDIDATES,
    *,
    uses: Mapping | None = None,
    stats: Mapping | None = None,
    known: Errors | None = None,
    white: bool = False,
) -> dict[str, dict[Any, np.ndarray]]:
    """{path: {codec: ‖x·(w − ŵ)‖² / ‖x·w‖² of each layer, (*stack)}} of what `budget` chooses from.

    Measure once, then choose for several limits, or for a model that shares weights with this one:
    what is in `known`, for as many layers, is not measured again. Without moments of its input in
    `stats` the error is that of the weight itself. With `white` it is relative to what one as large
    as the weight does in no particular direction.

    Codecs that encode each row by itself are measured on 2,048 rows, spread over the layers, at
    least 64 of each. Those of them that want stats (`GPTQ`, `SparseGPT`) are on 1,024 rows of 8
    layers, evenly spaced, and those that see the whole matrix (`LowRank`, `QERA`) on all rows of
    these layers; the layers between are interpolated. So no more than 128 rows of 8 layers are
    exact. ‖x·w‖² itself is of all rows where there are moments, since few of them may be most of
    it. Abstract weights count as normally distributed. The codecs of a weight are compiled
    together, and share what they make of its Gram matrix.

    Raises:
        ValueError: a rule matches no leaf, a codec cannot take a weight or wants stats that are
            not there, or a weight holds NaN or infinity.

    Example:
        >>> import jax, jaxmem as jm
        >>> params = {"w": jax.random.normal(jax.random.key(0), (5, 64, 64))}
        >>> found = jm.errors(params, [jm.Int(4), jm.Int(8)])["w"]
        >>> found[jm.Int(8)].shape, bool((found[jm.Int(8)] < found[jm.Int(4)] / 200).all())
        ((5,), True)
    """
    leaves = dict(zip(paths(params), jax.tree.leaves(params, is_leaf=is_whole)))
    found = {}
    for path, codecs in choices(leaves, candidates, uses).items():
        with naming(path):
            leaf, axes = leaves[path], summed_axes(path, uses)
            stack = matrix_shape(shape_of(leaf), axes)[:-2]
            had = (known or {}).get(path, {})
            had = {c: had[c] for c in codecs if c in had and had[c].shape == stack}
            missing = [c for c in dict.fromkeys(codecs) if c not in had]
            if missing:
                new = _errors(leaf, axes, stack, missing, (stats or {}).get(path), white)
                had |= {c: new[..., i] for i, c in enumerate(missing)}
            found[path] = had
    return found


@contextlib.contextmanager
def naming(path: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError) as error:
        raise type(error)(f"{path}: {error}") from error


def choices(leaves, candidates, uses) -> dict[str, list]:
    """{path: codecs} of the leaves that are not kept."""
    floats = lambda x: not is_encoded(x) and jnp.issubdtype(x.dtype, jnp.floating)
    able = {path: leaf for path, leaf in leaves.items() if floats(leaf)}
    if isinstance(candidates, Mapping):
        chosen = {p: c for p, c in match(list(leaves), dict(candidates)).items() if p in able}
    else:
        chosen = {p: candidates for p, leaf in able.items() if is_matrix(leaf, p, uses)}
    for path, codecs in chosen.items():
        if not isinstance(codecs, Sequence) or not codecs:
            raise ValueError(f"{path}: the candidates are {codecs!r}, expected a list of codecs")
    return chosen


def is_matrix(leaf: Any, path: str, uses: Mapping | None) -> bool:
    """Whether a weight is more than a vector for each layer, and is multiplied or looked up."""
    multiplied = {"dot_general", "gather", "conv_general_dilated"}
    used = uses is None or any(use.op in multiplied for use in uses.get(path, ()))
    return used and leaf.ndim - (is_lazy(leaf) and leaf.stacked) >= 2


def shape_of(leaf: Any) -> Any:
    """A leaf, or the shape of an array, which may not be in memory."""
    return leaf if is_encoded(leaf) else jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _errors(leaf, axes, stack, codecs, moments, white) -> np.ndarray:
    """(*stack, codecs) of a weight."""
    found = np.full((*stack, len(codecs)), np.inf)  # what stays so is interpolated
    for codec in codecs:
        if moments is None and needs_stats(codec):
            raise ValueError(f"{codec} wants the stats of what the weight is fed, got none")
    abstract = isinstance(leaf, jax.ShapeDtypeStruct)
    tied = list(map(ties_layers, codecs))
    for i in np.flatnonzero(tied):
        found[..., i] = _tied_errors(leaf, axes, codecs[i], moments, white)
    together, few = _together(codecs, tied, math.prod(stack), abstract)
    n = matrix_shape(shape_of(leaf), axes)[-2]
    for number, (at, layer) in enumerate(_layers(leaf, len(stack))):
        here = jax.tree.map(lambda a: a[at], moments)  # noqa: B023
        computed = None
        for (count, slow), which in together.items():
            if slow and number not in few:
                continue
            same, rows = tuple(codecs[i] for i in which), _rows(layer, axes, count)
            share = min(n, count or n) / max(n, 1) or 1.0
            if moments is None or abstract:
                computed = _energy(rows, here, white) / share
            elif computed is None:  # by all rows: a few of them may be most of it
                computed = _energy(_rows(layer, axes, None), here, white)
            lost = np.asarray(_lost(rows, here, same), np.float64) / share
            found[(*at, which)] = lost / max(float(computed), np.finfo(np.float32).tiny)
            for codec, error in zip(same, found[(*at, which)]):
                if not np.isfinite(error):
                    raise ValueError(f"it holds NaN, infinity or a number too large for {codec}")
        if abstract:
            found[...] = found[at]  # nothing tells its layers apart
            break
    return _interpolated(found)


def _together(codecs, tied, layers, abstract) -> tuple[dict, set]:
    """({(rows, whether slow): indices of codecs}, the layers where slow ones are measured)."""
    last = max(layers - 1, 0)
    few = {round(i * last / (FEW_LAYERS - 1)) for i in range(FEW_LAYERS)}
    rows = lambda all, n: FEWEST_ROWS if abstract else max(all // max(n, 1), FEWEST_ROWS)
    together: dict = {}
    for i, codec in enumerate(codecs):
        if tied[i]:
            continue
        slow = needs_stats(codec) or not has_independent_rows(codec)
        count = rows(FEW_ROWS, min(len(few), layers)) if slow else rows(ROWS, layers)
        count = count if has_independent_rows(codec) else None
        together.setdefault((count, slow), []).append(i)
    return together, few


def _interpolated(found: np.ndarray) -> np.ndarray:
    """(*stack, codecs) with what was not measured (infinite) by its neighbours in the stack."""
    flat = found.reshape(-1, found.shape[-1])
    place = np.arange(len(flat))
    for column in flat.T:
        known = np.isfinite(column)
        column[...] = np.interp(place, place[known], column[known])
    return flat.reshape(found.shape)


def _tied_errors(leaf, axes, codec, moments, white) -> np.ndarray:
    """The errors (*stack) of a codec that takes all layers together."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        leaf = np.random.default_rng(0).standard_normal(leaf.shape, np.float32)
    w = jnp.asarray(leaf.read(None) if is_lazy(leaf) else leaf)
    found = np.asarray(_tied_relative(w, moments, codec, axes, white))
    if not np.isfinite(found).all():
        raise ValueError(f"it holds NaN, infinity or a number too large for {codec}")
    return found


def _layers(leaf, depth: int) -> Iterator[tuple]:
    """(place, weight) of each layer of a stack of `depth` axes, one in memory at a time."""
    if is_lazy(leaf) and leaf.stacked:
        for i, part in enumerate(leaf.parts()):
            for rest in np.ndindex(part.shape[: depth - 1]):
                yield (i, *rest), part[rest]
        return
    whole = leaf.read(None) if is_lazy(leaf) else leaf  # as it is stored: rows are cast later
    for at in np.ndindex(whole.shape[:depth]):
        abstract = isinstance(whole, jax.ShapeDtypeStruct)
        yield at, jax.ShapeDtypeStruct(whole.shape[depth:], whole.dtype) if abstract else whole[at]


def _rows(layer, axes, count) -> Array:
    """`count` rows, or all, of the matrix (n, k) of a layer in f32; zeros where it has fewer."""
    if isinstance(layer, jax.ShapeDtypeStruct):
        n, k = matrix_shape(layer, axes)
        layer = np.random.default_rng(0).standard_normal((min(n, count or n), k), np.float32)
        axes = (-1,)
    elif isinstance(layer, np.ndarray) and layer.ndim == 2 and axes in ((-1,), (-2,)):
        side = -1 - axes[0]
        n = layer.shape[side]
        if count and n > count:  # picked here, or all of it would be copied to a device
            layer = np.take(layer, np.arange(count) * n // count, side)
    return _picked_rows(layer, axes, count)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _picked_rows(layer, axes, count) -> Array:
    matrix = Fold.from_weight(layer, axes)[0].astype(jnp.float32)
    n = matrix.shape[0]
    if count is None:
        return matrix
    if n < count:  # one shape for all weights of one k, so that a codec compiles once
        return jnp.pad(matrix, ((0, count - n), (0, 0)))
    return matrix[np.arange(count) * n // count]


@functools.partial(jax.jit, static_argnums=2)
def _lost(w, moments, codecs) -> Array:
    """‖x·(w − ŵ)‖² of a matrix by each codec, (codecs,)."""

    def one(codec):
        encoded = codec.encode(w, (-1,), moments)
        return _energy(w - (encoded.decode() if is_encoded(encoded) else encoded), moments)

    return jnp.stack([one(codec) for codec in codecs])


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _tied_relative(w, moments, codec, axes, white) -> Array:
    encoded = codec.encode(w, axes, moments).astype(jnp.float32)
    fold = lambda w: Fold.from_weight(w.astype(jnp.float32), axes)[0]
    matrix, got = fold(w), fold(encoded.decode())
    energy = {white: functools.partial(_energy, white=white) for white in (False, True)}
    for _ in range(matrix.ndim - 2):
        energy = {white: jax.vmap(each) for white, each in energy.items()}
    computed = energy[white](matrix, moments)
    lost = energy[False](matrix - got, moments)
    return lost / jnp.maximum(computed, jnp.finfo(jnp.float32).tiny)


@functools.partial(jax.jit, static_argnums=2)
def _energy(w, moments, white=False) -> Array:
    """‖x·w‖² of a matrix; if white, what one as large does on average over its directions."""
    second = jnp.ones(w.shape[1]) if moments is None else moments.second
    if white:
        mean = (jnp.trace(second) if second.ndim == 2 else second.sum()) / max(w.shape[1], 1)
        return mean * (w * w).sum()
    return ((w @ second if second.ndim == 2 else w * second[None]) * w).sum()
