"""The tiny models in reference/, read by our recipes."""

import functools
import json
import pathlib

import jax.numpy as jnp
import numpy as np
from drawn_weights import drawn
from flax.traverse_util import unflatten_dict

from jaxmem.architectures import decoder

FOLDER = pathlib.Path(__file__).parent / "reference"
MEMBERS = sorted(path.stem for path in (FOLDER / "decoders").glob("*.npz"))


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


@functools.cache
def member(name):
    """Of a decoder: its config and parameters, the file with `ids` and `logits`, its shapes."""
    file = dict(np.load(FOLDER / "decoders" / f"{name}.npz"))
    config = decoder.Config.from_hf(json.loads(str(file["config"])))
    shapes = json.loads(str(file["shapes"]))
    tensors = {path: drawn(path, shape) for path, shape in shapes.items()}
    return config, read(decoder.weights(config), tensors), file, shapes
