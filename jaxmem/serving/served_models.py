"""Which models an engine takes."""

import jax
from jax.sharding import NamedSharding

from ..models.flax_model import FlaxModel
from ..models.model import Model
from ..models.text_models import reads_source


def check_model(model: Model) -> None:
    """Refuses models whose keys and values no pool of one device holds.

    Raises:
        ValueError: an encoder-decoder, or a model without weights.
        NotImplementedError: a module of `from_flax`, or weights sharded over devices.
    """
    if reads_source(model):
        raise ValueError(f"{model.source} is an encoder-decoder, expected a decoder")
    if isinstance(model, FlaxModel):
        raise NotImplementedError(
            f"{model.source} is a module of from_flax, whose cache is its own; use generate"
        )
    if any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(model.tensors)):
        raise ValueError(f"{model.source} has shapes only, expected a model with weights")
    places = [getattr(x, "sharding", None) for x in jax.tree.leaves(model.params)]
    if any(isinstance(place, NamedSharding) and place.mesh.size > 1 for place in places):
        raise NotImplementedError(f"{model.source} is sharded, expected weights on one device")
