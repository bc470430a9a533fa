"""The tiny models in reference/, read by our recipes."""

import json
import pathlib

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

FOLDER = pathlib.Path(__file__).parent / "reference"


def read(recipes, tensors, prefix=""):
    """The nested parameters that `recipes` make of `tensors`, in f32."""
    out = {}
    for path, recipe in recipes.items():
        pieces = [recipe.fn(tensors[prefix + name]) for name in recipe.names]
        pieces = np.stack(pieces) if recipe.stacked or recipe.parts else pieces[0]
        out[path] = jnp.asarray(pieces.reshape(recipe.shape), jnp.float32)
    return unflatten_dict(out, sep="/")


def reference(name, family, prefix=""):
    """The config, the parameters, and the file with `ids` and what transformers made of them."""
    file = dict(np.load(FOLDER / f"{name}.npz"))
    config = family.Config.from_hf(json.loads(str(file["config"])))
    return config, read(family.weights(config), file, prefix), file
