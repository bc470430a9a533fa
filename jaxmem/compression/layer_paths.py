"""Paths of a plan that name layers of a stack: layers[3]/..., layers[0:8]/..."""

import itertools
import re
from collections.abc import Mapping
from typing import Any

_LAYERS = re.compile(r"\[(\d+)(?::(\d+))?\]")  # of a path: layers[3]/..., layers[0:8]/...


def layers_of(path: str) -> tuple[str, slice | None]:
    """(the path of a leaf, which layers of its stack a path in a plan names; None for all).

    Example:
        >>> layers_of("layers[3]/mlp/up/kernel"), layers_of("layers[0:8]/mlp/up/kernel")[1]
        (('layers/mlp/up/kernel', slice(3, 4, None)), slice(0, 8, None))
    """
    found = _LAYERS.search(path)
    if found is None:
        return path, None
    start = int(found[1])
    stop = start + 1 if found[2] is None else int(found[2])
    return path[: found.start()] + path[found.end() :], slice(start, stop)


def named(path: str, start: int, stop: int) -> str:
    """The path in a plan of layers start to stop of a stacked leaf.

    Example:
        >>> named("layers/mlp/up/kernel", 0, 8)
        'layers[0:8]/mlp/up/kernel'
    """
    first, *rest = path.split("/")
    return "/".join([f"{first}[{start}:{stop}]", *rest])


def by_layer(plan: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """{leaf: codec, or [(start, stop, codec or None)] where a plan tells layers apart}.

    Of two entries that name a layer the narrower counts; equal neighbours are one run.

    Raises:
        ValueError: an entry names no leaf, or layers that it does not have.

    Example:
        >>> plan = {"layers/w": "int4", "layers[0]/w": "int8"}
        >>> by_layer(plan, {"layers/w": (4, 32, 32)})
        {'layers/w': [(0, 1, 'int8'), (1, 4, 'int4')]}
    """
    found: dict[str, dict] = {}
    for path, codec in plan.items():
        leaf, which = layers_of(path)
        if leaf not in shapes:
            raise ValueError(f"the plan names {path!r}, which is no leaf; {list(shapes)[:3]} are")
        count = shapes[leaf][0] if shapes[leaf] else 0
        if which and not 0 <= which.start < which.stop <= count:
            raise ValueError(f"the plan names {path!r}, of a stack of {count} layers")
        found.setdefault(leaf, {})[which and (which.start, which.stop)] = codec
    out: dict[str, Any] = {}
    for leaf, entries in found.items():
        if set(entries) == {None}:
            out[leaf] = entries[None]
            continue
        narrow = sorted((e for e in entries if e), key=lambda e: e[0] - e[1])  # wide ones first
        each = [entries.get(None)] * shapes[leaf][0]
        for start, stop in narrow:
            each[start:stop] = [entries[start, stop]] * (stop - start)
        runs, at = [], 0
        for codec, same in itertools.groupby(each):
            size = len(list(same))
            runs.append((at, at + size, codec))
            at += size
        out[leaf] = runs if len(runs) > 1 else runs[0][2]
    return out
