"""host_recipes: recipes that leave just so many weights, keys and values in host memory that the
others fit.

What is in host memory passes over the link to the host at each step, so that the bytes are the time
(Sheng et al., 2023, FlexGen, choose shares of weights and of the cache by a linear program). Here a
stack of layers is moved or not, and the program is a small one in integers.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from ..compression.knapsack import least_loss
from ..core.byte_counts import device_bytes
from ..core.paths import is_whole, leaf_paths, paths
from ..offload.streamed_weights import layers_on_host
from .product_counts import OF_LAYERS
from .recipe import CACHE, Recipe
from .search import Candidate

_SPARE = 0.0, 0.05, 0.15, 0.3  # shares of the limit that are freed beside what is missing


def stacks_for_host(params: Any, excess: int, *, cache: Any = None) -> tuple[str, ...]:
    """The paths of stacks of layers that free `excess` bytes of the device, and few more.

    Two layers of what is moved are on the device: one that is used, and one that comes. Nothing is
    chosen, `()`, if all stacks together do not free so much.

    Args:
        params: dense or encoded, as shapes; stacks are below `layers`.
        excess: bytes to free.
        cache: keys and values, as shapes; their paths begin with "cache/".

    Example:
        >>> w = lambda *shape: jax.ShapeDtypeStruct(shape, np.float32)
        >>> params = {"layers": {"up": w(8, 64, 256), "down": w(8, 256, 128), "norm": w(8, 64)}}
        >>> stacks_for_host(params, 200_000), stacks_for_host(params, 600_000)
        (('layers/up',), ('layers/down',))
        >>> stacks_for_host(params, 2_000_000)
        ()
        >>> stacks_for_host(params, 2_000_000, cache={"k": w(8, 2, 4, 128, 128)})
        ('cache/k',)
    """
    leaves = zip(paths(params), jax.tree.leaves(params, is_leaf=is_whole))
    stacks = {path: leaf for path, leaf in leaves if OF_LAYERS.match(path)}
    states = zip(leaf_paths(cache), jax.tree.leaves(cache))
    stacks |= {CACHE + path: leaf for path, leaf in states}
    freed, names = [], []
    for path, leaf in stacks.items():
        stays = device_bytes(layers_on_host({"": leaf}))
        moved = device_bytes(leaf) - stays
        if moved:
            freed.append(moved - 2 * moved // leaf.shape[0])
            names.append(path)
    # Each stack is on the device, for nothing, or on the host, for its bytes.
    sizes = [np.array([size, 0.0]) for size in freed]
    choices = least_loss(sizes, [size[::-1] for size in sizes], sum(freed) - excess)
    return tuple(name for name, choice in zip(names, choices or ()) if choice)


def host_recipes(
    rows: Iterable[Candidate], parts: Callable[[Recipe], Mapping[str, Any]], limit: int
) -> list[list[Recipe]]:
    """For each encoding and cache of recipes that are too large, recipes that free enough bytes.

    Args:
        rows: recipes to serve that were tried, on one device.
        parts: gives "weights" and "KV cache" of a recipe, as shapes.
        limit: bytes of the device.

    Returns:
        recipes of one encoding and cache in one list, which free more and more; no empty lists.
    """
    smallest: dict = {}
    for row in sorted((row for row in rows if row.peak), key=lambda row: -row.peak):
        smallest[row.knobs.encoding, row.knobs.cache_bits] = row
    kinds = []
    for row in smallest.values():
        of_row, excess = parts(row.knobs), row.peak - limit
        choose = functools.partial(stacks_for_host, of_row["weights"], cache=of_row["KV cache"])
        found = [choose(excess + int(limit * spare)) for spare in _SPARE]
        kinds.append([dataclasses.replace(row.knobs, host=host) for host in dict.fromkeys(found)])
    return [some for kind in kinds if (some := [recipe for recipe in kind if recipe.host])]
