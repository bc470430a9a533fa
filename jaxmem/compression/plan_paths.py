"""Paths of a plan that name layers of a stack: layers[3]/..., layers[0:8]/..."""

import itertools
import re
from collections.abc import Collection, Mapping
from typing import Any

_LAYERS = re.compile(r"\[(\d+)(?::(\d+))?\]")  # the brackets in layers[3]/... or layers[0:8]/...


def layers_of(path: str, leaves: Collection[str] = ()) -> tuple[str, slice | None]:
    """(the path of the leaf, the layers of its stack) that a path in a plan names; None for all.

    `leaves` has the paths that there are. A path among them names all layers of that leaf, even if
    it has brackets.

    Example:
        >>> layers_of("layers[3]/mlp/up/kernel"), layers_of("layers[0:8]/mlp/up/kernel")[1]
        (('layers/mlp/up/kernel', slice(3, 4, None)), slice(0, 8, None))
        >>> layers_of("w[0]", ["w[0]"]), layers_of("w[0][2:4]", ["w[0]"])
        (('w[0]', None), ('w[0]', slice(2, 4, None)))
    """
    readings = [] if path in leaves else layer_readings(path)
    known = [reading for reading in readings if reading[0] in leaves]
    return (known or readings or [(path, None)])[0]


def layer_readings(path: str) -> list[tuple[str, slice]]:
    """Each way to read `path` as layers of a leaf: one for each pair of brackets with numbers.

    Example:
        >>> layer_readings("w[0][2:4]")
        [('w[2:4]', slice(0, 1, None)), ('w[0]', slice(2, 4, None))]
    """
    readings = []
    for match in _LAYERS.finditer(path):
        start = int(match[1])
        layers = slice(start, start + 1 if match[2] is None else int(match[2]))
        readings.append((path[: match.start()] + path[match.end() :], layers))
    return readings


def by_layer(plan: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """{path of a leaf: codec}; if its layers differ, {path: [(start, stop, codec or None), ...]}.

    If two entries of the plan name a layer, the entry with fewer layers wins. Neighbouring layers
    with the same codec are one run. `shapes` gives the shape of each leaf.

    Raises:
        ValueError: an entry names no leaf, or layers that the leaf does not have.

    Example:
        >>> plan = {"layers/w": "int4", "layers[0]/w": "int8"}
        >>> by_layer(plan, {"layers/w": (4, 32, 32)})
        {'layers/w': [(0, 1, 'int8'), (1, 4, 'int4')]}
    """
    by_leaf: dict[str, dict] = {}  # {path of a leaf: {(start, stop), or None for all: codec}}
    for path, codec in plan.items():
        leaf, layers = layers_of(path, shapes)
        if leaf not in shapes:
            raise ValueError(f"the plan names {path!r}, which is no leaf; {list(shapes)[:3]} are")
        count = shapes[leaf][0] if shapes[leaf] else 0
        if layers and not 0 <= layers.start < layers.stop <= count:
            raise ValueError(f"the plan names {path!r}, of a stack of {count} layers")
        by_leaf.setdefault(leaf, {})[layers and (layers.start, layers.stop)] = codec
    out: dict[str, Any] = {}
    for leaf, entries in by_leaf.items():
        if set(entries) == {None}:
            out[leaf] = entries[None]
            continue
        codecs = [entries.get(None)] * shapes[leaf][0]
        for start, stop in sorted((e for e in entries if e), key=lambda e: e[0] - e[1]):
            codecs[start:stop] = [entries[start, stop]] * (stop - start)  # narrower ones last
        runs, start = [], 0
        for codec, group in itertools.groupby(codecs):
            size = len(list(group))
            runs.append((start, start + size, codec))
            start += size
        out[leaf] = runs if len(runs) > 1 else runs[0][2]
    return out
