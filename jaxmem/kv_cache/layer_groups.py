"""Layers whose keys and values are in one page: all of them, or those with a window apart.

If pages of layers with a window hold no other layer, they are free as soon as they lie behind the
window. All pages are of one size, so each holds as many layers as there are of the rarer kind.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array


@dataclasses.dataclass(frozen=True)
class LayerGroups:
    """The layers of each group, and the tokens that a query sees in them.

    A row has a page of each group for the same tokens, one beside the other in its table.
    """

    layers: tuple[tuple[int, ...], ...]
    # tokens that a query sees beside sinks, itself included, in the layer that sees most; or None
    reaches: tuple[int | None, ...]
    windows: tuple[int | None, ...]  # the same of each layer

    @classmethod
    def of(cls, config: Any, window: int | None, *, by_window: bool) -> "LayerGroups":
        """The groups of a decoder's layers, whose queries see no more than `window` tokens.

        Example:
            >>> from jaxmem.architectures import llama
            >>> sizes = dict(vocab=64, width=32, ffn=48, heads=4, kv_heads=2, head_dim=8)
            >>> local = (True, True, True, False)
            >>> config = llama.Config(**sizes, layers=4, local=local, window=12)
            >>> groups = LayerGroups.of(config, None, by_window=True)
            >>> groups.layers, groups.reaches
            (((0,), (1,), (2,), (3,)), (12, 12, 12, None))
            >>> LayerGroups.of(config, 8, by_window=False)
            LayerGroups(layers=((0, 1, 2, 3),), reaches=(8,), windows=(8, 8, 8, 8))
        """
        local = _with_keys(config, getattr(config, "local", ()) or (False,) * config.layers)
        least = lambda *windows: min((w for w in windows if w is not None), default=None)
        windows = tuple(least(config.window if near else None, window) for near in local)
        near = [i for i, is_local in enumerate(local) if is_local]
        far = [i for i, is_local in enumerate(local) if not is_local]
        if not by_window or not (near and far):
            own = config.window if near and not far else None
            return cls((tuple(range(len(local))),), (least(own, window),), windows)
        size = min(len(near), len(far))
        groups, reaches = [], []
        for layers, own in ((near, config.window), (far, None)):
            parts = [tuple(layers[i : i + size]) for i in range(0, len(layers), size)]
            groups += parts
            reaches += [least(own, window)] * len(parts)
        return cls(tuple(groups), tuple(reaches), windows)

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def size(self) -> int:
        """Layers that a page has room for."""
        return max(map(len, self.layers))

    @property
    def places(self) -> tuple[np.ndarray, np.ndarray]:
        """The group of each layer, and its place among the layers of the group: (L,) int32 each."""
        found = {n: (g, i) for g, group in enumerate(self.layers) for i, n in enumerate(group)}
        group, slot = zip(*(found[layer] for layer in range(len(found))))
        return np.array(group, np.int32), np.array(slot, np.int32)

    def place(self, layer: Array) -> tuple[Array | int, Array]:
        """(the group of a layer, its place in pages of that group)."""
        if len(self) == 1:
            return 0, layer
        group, slot = self.places
        return jnp.asarray(group)[layer], jnp.asarray(slot)[layer]


def _with_keys(config: Any, of_layers: tuple[bool, ...]) -> tuple[bool, ...]:
    """What `of_layers` says of each layer, for the layers that have attention."""
    recurrence = getattr(config, "recurrence", None)
    if recurrence is None or recurrence.beside:
        return of_layers
    has_state = recurrence.layers or (True,) * config.layers
    return tuple(value for value, state in zip(of_layers, has_state) if not state)
