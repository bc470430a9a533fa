"""fewer: smaller versions of a model, each with some structure removed, for a budget to compare."""

from collections.abc import Collection, Iterator, Mapping
from typing import Literal, get_args

from jax import Array

from ..core.arguments import IDS, NAMES, takes
from ..core.paths import check_same_tree, paths
from ..models.model import Model
from .depth import least_missed, remove_layers
from .heads import remove_heads
from .neurons import remove_neurons
from .width import remove_width

Structure = Literal["neurons", "heads", "width", "layers"]
KEPT_NEURONS = (7 / 8, 3 / 4)
KEPT_GROUPS = 7 / 8  # groups of heads that share keys
KEPT_WIDTH = 7 / 8  # of the residual stream, in multiples of 8
REMOVED_LAYERS = (1 / 16, 1 / 8)


@takes(kinds=NAMES, ids=IDS)
def fewer(
    model: Model, kinds: Collection[Structure], *, stats: Mapping, ids: Array
) -> Iterator[tuple[Model, list[int]]]:
    """(a smaller model, the layers that it has), for each of the `kinds` and each size.

    The sizes are 7/8 and 3/4 of the neurons; one query head less in each group that shares keys,
    and 7/8 of the groups; 7/8 of the width; 15/16 and 7/8 of the layers. `stats` has the Gram
    matrices by which neurons, heads and directions are chosen and refitted; `ids` (rows, tokens) is
    the text by which layers are chosen. To compare bytes saved by structure with bytes saved by
    fewer bits, give each model to `budget` with the same limit.

    Raises:
        ValueError: the model has one layer or head, or its width cannot be reduced (see
            `remove_width`); `stats` has no Gram matrices.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmem as jm
        >>> from jaxmem.architectures import llama
        >>> sizes = dict(vocab=64, width=32, ffn=48, layers=3, heads=4, kv_heads=2, head_dim=8)
        >>> config, ids = llama.Config(**sizes), jnp.arange(60).reshape(2, 30)
        >>> shapes = jax.eval_shape(llama.module(config).init, jax.random.key(0), ids)["params"]
        >>> params = jax.tree.map(lambda s: jnp.full(s.shape, 0.1), shapes)
        >>> model = jm.models.Model(config, params, None, "blank")
        >>> fed = jm.stats(model.apply, params, [(ids,)])
        >>> size = lambda c: (c.heads, c.kv_heads, c.width, c.layers)
        >>> for small, layers in fewer(model, ["heads", "width", "layers"], stats=fed, ids=ids):
        ...     print(size(small.config), layers)
        (2, 2, 32, 3) [0, 1, 2]
        (2, 1, 32, 3) [0, 1, 2]
        (4, 2, 24, 3) [0, 1, 2]
        (4, 2, 32, 2) [1, 2]
    """
    if unknown := set(kinds) - set(get_args(Structure)):
        names = ", ".join(get_args(Structure))
        raise ValueError(f"kinds has {min(unknown)!r}, expected some of {names}")
    check_same_tree(paths(model.params), stats=stats)
    config, whole = model.config, list(range(model.config.layers))
    if "neurons" in kinds:
        for share in KEPT_NEURONS:
            yield remove_neurons(model, max(1, round(share * config.ffn)), stats), whole
    if "heads" in kinds:
        groups = getattr(config, "kv_heads", config.heads)
        if groups < config.heads:
            yield remove_heads(model, stats, heads=config.heads - groups), whole
        if groups > 1 or groups == config.heads:
            count = min(round(KEPT_GROUPS * groups), groups - 1)
            yield remove_heads(model, stats, kv_heads=count), whole
    if "width" in kinds:
        yield remove_width(model, int(KEPT_WIDTH * config.width / 8) * 8, stats), whole
    if "layers" in kinds:
        counts = sorted({max(1, round(share * config.layers)) for share in REMOVED_LAYERS})
        order = least_missed(model, counts[-1], ids)
        for count in counts:
            gone = order[:count]
            yield remove_layers(model, gone), [i for i in whole if i not in gone]
