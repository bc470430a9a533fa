"""budget: least Σ sensitivity · ‖x·(w − ŵ)‖² / ‖x·w‖² with Σ bytes ≤ nbytes: one codec a weight.

A multiple-choice knapsack, solved by `knapsack.least_loss`.
"""

import collections
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.arguments import BYTES, INTEGER, OPTIONAL_MAPPING, TREE, Kind, takes
from ..core.byte_counts import nbytes as count_bytes
from ..core.byte_counts import shape_of
from ..core.codec import ties_layers
from ..core.fold import matrix_shape
from ..core.paths import check_same_tree, is_whole, path_of_layers, paths
from ..core.usage import summed_axes
from .candidates import CANDIDATES, choices
from .knapsack import least_loss
from .layer_errors import Errors, errors, prefixed
from .leaf_shapes import abstract_leaf
from .plan import Plan
from .token_seconds import SecondsLimit

LOOKUP_SENSITIVITY = 1 / 8  # of a table that is only looked up: .12 and .21 in two models


class Unreachable(ValueError):
    """No choice among the candidates is as small as the limit; `least` is the smallest size."""

    def __init__(self, message: str, least: int):
        super().__init__(message)
        self.least = least


_MAPPINGS = dict.fromkeys(("uses", "stats", "sensitivity", "known"), OPTIONAL_MAPPING)
_SECONDS = Kind("a SecondsLimit or None", lambda x: x is None or isinstance(x, SecondsLimit))


@takes(params=TREE, nbytes=BYTES, runs=INTEGER, seconds=_SECONDS, **_MAPPINGS)
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
    seconds: SecondsLimit | None = None,
) -> Plan:
    """The plan that loses least among those whose encoded params take at most `nbytes` bytes.

    The loss of a choice is the squared error of the weight's product, relative to the product,
    times the weight's sensitivity. If `stats` has no moments of the weight's input, the error of
    the weight itself is used. Without `sensitivity`, each role in the network counts the same: all
    layers of one kind together count as much as the head. A table that is only looked up counts an
    eighth.

    Lazy params are read one layer at a time. Errors are measured on a part of each weight, which
    `errors` documents. The same input gives the same plan, within 1e-6 of the least loss.
    Dong et al., 2019 (sensitivity times error); Hubara et al., 2021 (the exact program).

    Args:
        params: a tree of dense weights: arrays, lazy leaves, or shapes.
        nbytes: the most bytes that the encoded params may take, dense leaves included.
        candidates: codecs for every matrix, or {regex: codecs} as in `choose`. Leaves that are no
            matrices, or that no regex matches, stay dense. `Keep()` is a candidate like any other;
            `techniques` makes candidates of every kind.
        uses: how the model uses each weight, from `jm.uses`.
        stats: the moments of each weight's input, from `jm.stats`.
        sensitivity: {path: a number, or an array with one number for each layer}. `fisher` measures
            it, and the error is then relative to a random error as large as the weight.
        runs: the number of runs of equally many layers that each stack is cut into; each run gets
            its own codec (`layers[0:8]/up`), and neighbours with the same codec are joined. For
            models that scan their layers. A stack with a candidate that encodes all layers
            together is not cut.
        known: what `errors` returned before, to measure nothing twice.
        seconds: a second limit, of the seconds that a token takes.

    Raises:
        ValueError: no choice is as small as `nbytes` (the message gives the smallest size), or as
            fast as `seconds`; a rule matches no leaf; `runs` is less than 1; a codec cannot take a
            weight; a weight holds NaN or infinity, or has no sensitivity.
        ImportError: scipy is missing, which a large problem or a limit of seconds wants.

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
    check_same_tree(leaves, stats=stats, sensitivity=sensitivity)
    chosen = choices(leaves, candidates, uses)
    axes = {path: summed_axes(path, uses, leaves) for path in chosen}
    cells, sizes = {}, {}
    for path, codecs in chosen.items():
        with prefixed(path):
            cells[path] = _cells(leaves[path], axes[path], codecs, runs)
            sizes[path] = [_sizes(cell, axes[path], codecs) for _, cell in cells[path]]
    dense = count_bytes([shape_of(leaf) for path, leaf in leaves.items() if path not in chosen])
    least = dense + sum(min(cell) for by_cell in sizes.values() for cell in by_cell)
    if least > nbytes:
        message = f"{nbytes} bytes cannot hold it; the smallest reachable size is {least}"
        raise Unreachable(message, least)
    options = {"uses": uses, "stats": stats, "known": known, "white": sensitivity is not None}
    by_codec = errors(params, candidates, **options)
    relative = {p: np.stack([by_codec[p][c] for c in codecs], -1) for p, codecs in chosen.items()}
    weights = _by_role(relative, uses) if sensitivity is None else _checked(relative, sensitivity)
    losses = [
        np.tensordot(weights[path][cell], e[cell], e.ndim - 1)
        for path, e in relative.items()
        for cell, _ in cells[path]
    ]
    rest: tuple = ()
    if seconds is not None:
        prices = [
            np.array([seconds.of(path, abstract_leaf(c, *_key(cell, axes[path]))) for c in codecs])
            for path, codecs in chosen.items()
            for _, cell in cells[path]
        ]
        kept = sum(seconds.of(path, leaf) for path, leaf in leaves.items() if path not in chosen)
        fastest = kept + sum(price.min() for price in prices)
        if fastest > seconds.limit:
            raise ValueError(
                f"{1e3 * seconds.limit:.3g} ms a token cannot be reached; the fastest choice is "
                f"predicted to take {1e3 * fastest:.3g} ms"
            )
        rest = prices, seconds.limit - kept
    choice = least_loss([*itertools.chain(*sizes.values())], losses, nbytes - dense, *rest)
    if choice is None:
        raise ValueError(
            f"no choice takes both {nbytes} bytes and {1e3 * rest[1]:.3g} ms a token; allow more"
        )
    choice, plan = iter(choice), {}
    for path, codecs in chosen.items():
        by_cell = [(cell, codecs[next(choice)]) for cell, _ in cells[path]]
        for codec, pairs in itertools.groupby(by_cell, lambda pair: pair[1]):
            run = [cell for cell, _ in pairs]
            whole = len(run) == len(by_cell)
            plan[path if whole else path_of_layers(path, run[0].start, run[-1].stop)] = codec
    return Plan(plan, axes)


def _cells(leaf, axes, codecs, runs) -> list[tuple]:
    """[(a slice of layers that get one codec, or `...` for a whole weight; their shape)]."""
    shape = shape_of(leaf)
    stack = matrix_shape(shape, axes)[:-2]
    count = min(runs, stack[0]) if stack and not any(map(ties_layers, codecs)) else 1
    if count <= 1:
        return [(..., shape)]
    ends = [stack[0] * i // count for i in range(count + 1)]
    part = lambda n: jax.ShapeDtypeStruct((n, *shape.shape[1:]), shape.dtype)
    return [(slice(a, b), part(b - a)) for a, b in itertools.pairwise(ends)]


def _sizes(shape, axes, codecs) -> list[int]:
    """Bytes of a weight of this shape by each codec."""
    return [count_bytes(abstract_leaf(codec, *_key(shape, axes))) for codec in codecs]


def _key(shape, axes) -> tuple:
    """What `abstract_leaf` takes beside a codec."""
    return tuple(axes), shape.shape, jnp.dtype(shape.dtype)


def _by_role(errors, uses) -> dict[str, np.ndarray]:
    """{path: sensitivity of each layer}: 1 for each role, divided equally among its layers."""
    role = lambda path: re.sub(r"\d+", "#", path)
    layers = collections.Counter()
    for path, error in errors.items():
        layers[role(path)] += error[..., 0].size
    looked_up = lambda path: {u.op for u in (uses or {}).get(path, ())} == {"gather"}
    share = lambda path: (LOOKUP_SENSITIVITY if looked_up(path) else 1.0) / layers[role(path)]
    return {path: np.full(error.shape[:-1], share(path)) for path, error in errors.items()}


def _checked(errors, sensitivity) -> dict[str, np.ndarray]:
    """{path: sensitivity of each layer}, from the caller's numbers."""
    by_path = {}
    for path, error in errors.items():
        if path not in sensitivity:
            raise ValueError(f"{path} has no sensitivity; there are {list(sensitivity)[:3]}")
        value, stack = np.asarray(sensitivity[path], np.float64), error.shape[:-1]
        if value.shape not in ((), stack) or not np.isfinite(value).all() or (value < 0).any():
            raise ValueError(
                f"{path}: sensitivity {value.tolist()!r:.60}, expected one number of at least 0, "
                f"or numbers of shape {stack}"
            )
        share = value / max(error[..., 0].size, 1)
        by_path[path] = value if value.shape == stack else np.full(stack, share)
    return by_path
