"""budget: least Σ sensitivity · ‖x·(w − ŵ)‖² / ‖x·w‖² with Σ bytes ≤ nbytes: one codec a weight.

A multiple-choice knapsack, solved by HiGHS.
"""

import collections
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ..core.codec import ties_layers
from ..core.fold import matrix_shape
from ..core.leaf import nbytes as count_bytes
from ..core.paths import is_whole, paths
from ..core.usage import summed_axes
from .knapsack import least_loss
from .layer_errors import CANDIDATES, Errors, choices, errors, naming, shape_of
from .layer_paths import named
from .plan import Plan

LOOKED_UP = 1 / 8  # of a table that is only looked up: .12 and .21 of the others in two models


class Unreachable(ValueError):
    """No choice among the candidates is as small as the limit."""


def budget(
    params: Any,
    *,
    nbytes: int,
    candidates: Sequence[Any] | Mapping[str, Sequence[Any]] = CANDIDATES,
    uses: Mapping | None = None,
    stats: Mapping | None = None,
    sensitivity: Mapping[str, Any] | None = None,
    runs: int = 1,
    known: Errors | None = None,
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

    Lazy params are read one layer at a time. Errors are measured on a part of each weight: `errors`
    says on which, and `known` may hold what it found before. `techniques` makes candidates of
    every kind. The same input gives the same plan, within 1e-6 of the least loss.
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
    chosen = choices(leaves, candidates, uses)
    axes = {path: summed_axes(path, uses) for path in chosen}
    cells, sizes = {}, {}
    for path, codecs in chosen.items():
        with naming(path):
            cells[path] = _cells(leaves[path], axes[path], codecs, runs)
            sizes[path] = [_sizes(cell, axes[path], codecs) for _, cell in cells[path]]
    kept = sum(count_bytes(shape_of(leaf)) for path, leaf in leaves.items() if path not in chosen)
    least = kept + sum(min(size) for found in sizes.values() for size in found)
    if least > nbytes:
        raise Unreachable(f"{nbytes} bytes cannot hold it; the smallest reachable size is {least}")
    how = {"uses": uses, "stats": stats, "known": known, "white": sensitivity is not None}
    found = errors(params, candidates, **how)
    lost = {p: np.stack([found[p][c] for c in codecs], -1) for p, codecs in chosen.items()}
    weights = _by_role(lost, uses) if sensitivity is None else _given(lost, sensitivity)
    losses = [
        np.tensordot(weights[path][cell], e[cell], e.ndim - 1)
        for path, e in lost.items()
        for cell, _ in cells[path]
    ]
    picked = iter(least_loss([*itertools.chain(*sizes.values())], losses, nbytes - kept))
    plan = {}
    for path, codecs in chosen.items():
        given = [(cell, codecs[next(picked)]) for cell, _ in cells[path]]
        for codec, pairs in itertools.groupby(given, lambda pair: pair[1]):
            same = [cell for cell, _ in pairs]
            whole = len(same) == len(given)
            plan[path if whole else named(path, same[0].start, same[-1].stop)] = codec
    return Plan(plan)


def _cells(leaf, axes, codecs, runs) -> list[tuple]:
    """[(layers that are chosen for together, ... for a whole weight; their shape)]."""
    shape = shape_of(leaf)
    stack = matrix_shape(shape, axes)[:-2]
    count = min(runs, stack[0]) if stack and not any(map(ties_layers, codecs)) else 1
    if count <= 1:
        return [(..., shape)]
    ends = [stack[0] * i // count for i in range(count + 1)]
    part = lambda n: jax.ShapeDtypeStruct((n, *shape.shape[1:]), shape.dtype)
    return [(slice(a, b), part(b - a)) for a, b in itertools.pairwise(ends)]


def _sizes(shape, axes, codecs) -> list[int]:
    encoded = lambda codec: jax.eval_shape(lambda w: codec.encode(w, axes), shape)
    return [count_bytes(encoded(codec)) for codec in codecs]


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
