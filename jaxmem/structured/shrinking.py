"""fewer: a model with some of its neurons or layers gone, for a budget to choose among."""

from collections.abc import Collection, Iterator, Mapping
from typing import Literal

from jax import Array

from ..models.model import Model
from .depth import least_missed, remove_layers
from .neurons import remove_neurons

Structure = Literal["neurons", "layers"]
NEURONS = (7 / 8, 3 / 4)  # that stay
LAYERS = (1 / 16, 1 / 8)  # that go


def fewer(
    model: Model, kinds: Collection[Structure], *, stats: Mapping, ids: Array
) -> Iterator[Model]:
    """The model with 7/8 and 3/4 of its neurons, and without 1/16 and 1/8 of its layers.

    Of `kinds` those that are named. `stats` has Gram matrices, by which the neurons are chosen and
    made up for; `ids` (rows, tokens) is text by which the layers are. Bytes saved by structure and
    by fewer bits compete: give each model to `budget` with the same limit, and compare.

    Raises:
        ValueError: a model of one layer; stats without Gram matrices.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmem as jm
        >>> from jaxmem.models import gpt2
        >>> config, ids = gpt2.Config(vocab=64, width=32, layers=3, heads=4), jnp.ones((1, 5), int)
        >>> shapes = jax.eval_shape(gpt2.module(config).init, jax.random.key(0), ids)["params"]
        >>> params = jax.tree.map(lambda s: jnp.full(s.shape, 0.1), shapes)
        >>> model = jm.models.Model(config, params, None, "blank")
        >>> fed = jm.stats(model.apply, params, [(ids,)])
        >>> small = fewer(model, ["neurons", "layers"], stats=fed, ids=ids)
        >>> [(m.config.ffn, m.config.layers) for m in small]
        [(112, 3), (96, 3), (128, 2)]
    """
    if "neurons" in kinds:
        for share in NEURONS:
            yield remove_neurons(model, max(1, round(share * model.config.ffn)), stats)
    if "layers" in kinds:
        counts = sorted({max(1, round(share * model.config.layers)) for share in LAYERS})
        order = least_missed(model, counts[-1], ids)
        for count in counts:
            yield remove_layers(model, order[:count])
