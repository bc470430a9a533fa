"""budget: least Σ sensitivity · ‖x·(w − ŵ)‖² / ‖x·w‖² with Σ bytes ≤ nbytes: one codec a weight.

A multiple-choice knapsack, solved by HiGHS.
"""

import collections
import contextlib
import functools
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .codecs import Int
from .folding import Fold
from .lazy import is_lazy
from .leaf import is_encoded
from .leaf import nbytes as count_bytes
from .planning import Plan, summed_axes
from .segmented import named
from .select import is_whole, match, paths
from .solvers.solver import encodes_rows, needs_stats, ties_layers

CANDIDATES = tuple(Int(b, group=g, symmetric=False) for b in range(3, 9) for g in (64, 128))
ROWS = 2048  # of a weight, evenly spaced over its layers, that an error is measured on
FEWEST_ROWS = 64  # of each layer
WHOLE_LAYERS = 8  # of a stack, evenly spaced, where an error takes all rows
LOOKED_UP = 1 / 8  # of a table that is only looked up: .12 and .21 of the others in two models
GAP = 1e-6  # the plan's loss is at most this share above the least possible


def budget(
    params: Any,
    *,
    nbytes: int,
    candidates: Sequence[Any] | Mapping[str, Sequence[Any]] = CANDIDATES,
    uses: Mapping | None = None,
    stats: Mapping | None = None,
    sensitivity: Mapping[str, Any] | None = None,
    runs: int = 1,
) -> Plan:
    """The plan that loses least among those whose encoded params take at most `nbytes` bytes.

    `candidates` are codecs for every weight, or {regex: codecs} as in `choose`. Given a list, what
    is no matrix is kept, and so are stacked vectors where `uses` tells that nothing multiplies
    them; given rules, what no rule matches is kept. Kept leaves count their bytes. `Keep()` is a
    candidate like any other.

    A choice loses the squared error of what the weight computes, relative to what it computes (of
    the weight itself, where `stats` has no moments of its input), times its `sensitivity`: a
    number for each weight, or one for each layer of a stack. `fisher` measures it, and then the
    error counts relative to one as large as the weight in no particular direction. Without it
    each role in the network weighs the same: the layers of one kind, stacked or told apart by
    numbers in their paths, together as much as the head; a table that is only looked up, as
    `uses` tells, weighs an eighth.

    With `runs` the layers of a stack may differ: each stack is cut into that many runs of layers,
    equally long, and each run gets a codec of its own (`layers[0:8]/up`; neighbours that get the
    same are one). It is for models that scan their layers, which then are as many scans at most. A
    stack with a candidate that takes all its layers together stays whole.

    Lazy params are read one layer at a time. Codecs that encode each row by itself are measured on
    2,048 rows spread over the layers, at least 64 of each; the others (`LowRank`, `QERA`) on 8
    layers, and those between are interpolated; abstract weights as if they were normally
    distributed. `techniques` makes candidates of every kind. The same input gives the same plan,
    within 1e-6 of the least loss.
    Dong et al., 2019 (sensitivity times error); Hubara et al., 2021 (the exact program).

    Raises:
        ValueError: the limit cannot be met (names the least that can be), a rule matches no leaf,
            there is less than one run, a codec cannot take a weight, a weight holds NaN or
            infinity, or has no sensitivity.
        ImportError: scipy is missing.

    Example:
        >>> import jax, jaxmem as jm
        >>> w = jax.random.normal(jax.random.key(0), (64, 64))
        >>> params = {"up": w, "down": w}
        >>> plan = jm.budget(params, nbytes=6_500, candidates=[jm.Int(4), jm.Int(8)],
        ...                  sensitivity={"up": 1.0, "down": 9.0})
        >>> plan["up"].bits, plan["down"].bits
        (4, 8)
    """
    if runs < 1:
        raise ValueError(f"budget cuts a stack into at least 1 run, got {runs}")
    leaves = dict(zip(paths(params), jax.tree.leaves(params, is_leaf=is_whole)))
    choices = _choices(leaves, candidates, uses)
    axes = {path: summed_axes(path, uses) for path in choices}
    cells, sizes, errors = {}, {}, {}
    for path, codecs in choices.items():
        with _naming(path):
            cells[path] = _cells(leaves[path], axes[path], codecs, runs)
            sizes[path] = [_sizes(cell, axes[path], codecs) for _, cell in cells[path]]
    kept = sum(count_bytes(_shape(leaf)) for path, leaf in leaves.items() if path not in choices)
    least = kept + sum(min(size) for found in sizes.values() for size in found)
    if least > nbytes:
        raise ValueError(f"{nbytes} bytes cannot hold it; the smallest reachable size is {least}")
    white = sensitivity is not None
    for path, codecs in choices.items():
        with _naming(path):
            moments = (stats or {}).get(path)
            errors[path] = _errors(leaves[path], axes[path], codecs, moments, white)
    weights = _by_role(errors, uses) if sensitivity is None else _given(errors, sensitivity)
    losses = [
        np.tensordot(weights[path][cell], e[cell], e.ndim - 1)
        for path, e in errors.items()
        for cell, _ in cells[path]
    ]
    picked = iter(_knapsack([*itertools.chain(*sizes.values())], losses, nbytes - kept))
    plan = {}
    for path, codecs in choices.items():
        given = [(cell, codecs[next(picked)]) for cell, _ in cells[path]]
        for codec, pairs in itertools.groupby(given, lambda pair: pair[1]):
            same = [cell for cell, _ in pairs]
            whole = len(same) == len(given)
            plan[path if whole else named(path, same[0].start, same[-1].stop)] = codec
    return Plan(plan)


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError) as error:
        raise type(error)(f"{path}: {error}") from error


def _choices(leaves, candidates, uses) -> dict[str, list]:
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


def _shape(leaf):
    return leaf if is_encoded(leaf) else jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _cells(leaf, axes, codecs, runs) -> list[tuple]:
    """[(layers that are chosen for together, ... for a whole weight; their shape)]."""
    shape = _shape(leaf)
    stack = jax.eval_shape(lambda w: Fold.of(w, axes)[0], shape).shape[:-2]
    count = min(runs, stack[0]) if stack and not any(map(ties_layers, codecs)) else 1
    if count <= 1:
        return [(..., shape)]
    ends = [stack[0] * i // count for i in range(count + 1)]
    part = lambda n: jax.ShapeDtypeStruct((n, *shape.shape[1:]), shape.dtype)
    return [(slice(a, b), part(b - a)) for a, b in itertools.pairwise(ends)]


def _sizes(shape, axes, codecs) -> list[int]:
    encoded = lambda codec: jax.eval_shape(lambda w: codec.encode(w, axes), shape)
    return [count_bytes(encoded(codec)) for codec in codecs]


def _errors(leaf, axes, codecs, moments, white) -> np.ndarray:
    """‖x·(w − ŵ)‖² / ‖x·w‖² of each layer and codec: (*stack, codecs)."""
    folded = jax.eval_shape(lambda w: Fold.of(w, axes)[0], _shape(leaf))
    stack = folded.shape[:-2]
    found = np.empty((*stack, len(codecs)))
    for codec in codecs:
        if moments is None and needs_stats(codec):
            raise ValueError(f"{codec} wants the stats of what the weight is fed, got none")
    abstract = isinstance(leaf, jax.ShapeDtypeStruct)
    few = FEWEST_ROWS if abstract else max(ROWS // max(math.prod(stack), 1), FEWEST_ROWS)
    count = lambda codec: few if encodes_rows(codec) else None
    tied = list(map(ties_layers, codecs))
    last = max(math.prod(stack) - 1, 0)
    whole = {round(i * last / (WHOLE_LAYERS - 1)) for i in range(WHOLE_LAYERS)}
    for i in np.flatnonzero(tied):
        found[..., i] = _tied_errors(leaf, axes, codecs[i], moments, white)
    for number, (at, layer) in enumerate(_layers(leaf, len(stack))):
        here = jax.tree.map(lambda a: a[at], moments)  # noqa: B023
        counts = {
            i: count(codec)
            for i, codec in enumerate(codecs)
            if not tied[i] and (count(codec) or number in whole)
        }
        found[at] = np.where(tied, found[at], np.inf)  # interpolated if not measured
        rows = {n: _rows(layer, axes, n) for n in set(counts.values())}
        for i, n in counts.items():
            found[*at, i] = _relative(rows[n], here, codecs[i], white)
            if not np.isfinite(found[*at, i]):
                raise ValueError(f"it holds NaN, infinity or a number too large for {codecs[i]}")
        if abstract:
            found[...] = found[at]  # nothing tells its layers apart
            break
    return _interpolated(found)


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
        n, k = jax.eval_shape(lambda w: Fold.of(w, axes)[0], layer).shape
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
    matrix = Fold.of(layer, axes)[0].astype(jnp.float32)
    n = matrix.shape[0]
    if count is None:
        return matrix
    if n < count:  # one shape for all weights of one k, so that a codec compiles once
        return jnp.pad(matrix, ((0, count - n), (0, 0)))
    return matrix[np.arange(count) * n // count]


@functools.partial(jax.jit, static_argnums=(2, 3))
def _relative(w, moments, codec, white) -> Array:
    encoded = codec.encode(w, (-1,), moments)
    error = w - (encoded.decode() if is_encoded(encoded) else encoded)
    return _share(w, error, moments, white)


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _tied_relative(w, moments, codec, axes, white) -> Array:
    encoded = codec.encode(w, axes, moments).astype(jnp.float32)
    fold = lambda w: Fold.of(w.astype(jnp.float32), axes)[0]
    matrix, got = fold(w), fold(encoded.decode())
    share = functools.partial(_share, white=white)
    for _ in range(matrix.ndim - 2):
        share = jax.vmap(share)
    return share(matrix, matrix - got, moments)


def _share(w, error, moments, white) -> Array:
    second = jnp.ones(w.shape[1]) if moments is None else moments.second
    energy = lambda e: ((e @ second if second.ndim == 2 else e * second[None]) * e).sum()
    # what an error as large as the weight does, on average over its directions
    mean = (jnp.trace(second) if second.ndim == 2 else second.sum()) / max(w.shape[1], 1)
    whole = mean * (w * w).sum() if white else energy(w)
    return energy(error) / jnp.maximum(whole, jnp.finfo(jnp.float32).tiny)


def _by_role(errors, uses) -> dict[str, np.ndarray]:
    """One for each role, shared out among its layers; less for a table that is only looked up."""
    role = lambda path: re.sub(r"\d+", "#", path)
    layers = collections.Counter()
    for path, found in errors.items():
        layers[role(path)] += found[..., 0].size
    looked_up = lambda path: {u.op for u in (uses or {}).get(path, ())} == {"gather"}
    share = lambda path: (LOOKED_UP if looked_up(path) else 1.0) / layers[role(path)]
    return {path: np.full(found.shape[:-1], share(path)) for path, found in errors.items()}


def _given(errors, sensitivity) -> dict[str, np.ndarray]:
    given = {}
    for path, found in errors.items():
        if path not in sensitivity:
            raise ValueError(f"{path} has no sensitivity; there are {list(sensitivity)[:3]}")
        value, stack = np.asarray(sensitivity[path], np.float64), found.shape[:-1]
        if value.shape not in ((), stack) or not np.isfinite(value).all() or (value < 0).any():
            raise ValueError(
                f"{path}: sensitivity {value.tolist()!r:.60}, expected one number of at least 0, "
                f"or numbers of shape {stack}"
            )
        given[path] = value if value.shape == stack else np.full(stack, value / found[..., 0].size)
    return given


def _knapsack(sizes, losses, limit) -> list[int]:
    """The choice in each row, so that the sizes are at most `limit` and the losses least."""
    try:
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_array
    except ModuleNotFoundError as e:
        raise ImportError('budget wants scipy: pip install "jaxmem[demo]"') from e
    if not sizes:
        return []
    size, loss = np.concatenate(sizes), np.concatenate(losses)
    row = np.repeat(np.arange(len(sizes)), [len(s) for s in sizes])
    which = csr_array((np.ones(len(size)), (row, np.arange(len(size)))))
    one_each = LinearConstraint(which, 1, 1)
    unit = max(limit, 1) / 1e3  # better conditioned; HiGHS may then go over by a billionth
    solve = lambda whole, scale, most: milp(
        loss / max(scale, 1e-300),
        integrality=np.full(len(loss), whole),
        bounds=Bounds(0, 1),
        constraints=[one_each, LinearConstraint(size[None] / unit, -np.inf, most / unit)],
        options={"mip_rel_gap": GAP},
    )
    bound = solve(0, loss.max(), limit).fun * loss.max()  # of fractions, just below the answer
    scale, most = max(bound, loss.max() * 1e-9), limit  # losses about 1: HiGHS's gap is absolute
    while True:
        found = solve(1, scale, most).x
        picked = [int(part.argmax()) for part in np.split(found, np.flatnonzero(np.diff(row)) + 1)]
        over = sum(s[i] for s, i in zip(sizes, picked)) - limit
        if over <= 0:
            return picked
        most -= over
