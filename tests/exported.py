"""What the tests of exports share: checkpoints, an encoded model, and comparisons of trees."""

import json
import pathlib

import jax
import numpy as np
from drawn_weights import drawn
from safetensors.numpy import save_file

import jaxmem as jm

REFERENCES = pathlib.Path(__file__).parent / "reference"
IDS = np.array([[5, 17, 2, 300, 9]])


def encoded(model, rules):
    plan = jm.choose(model.tensors, rules)
    return jm.encode(model.tensors, plan, jm.uses(model.apply, model.tensors, IDS))


def assert_stands_for(tree, want):
    """Equal in every bit of every weight."""
    pairs = zip(jax.tree.leaves(jm.decode(tree)), jax.tree.leaves(jm.decode(want)), strict=True)
    for got, expected in pairs:
        np.testing.assert_array_equal(got, expected)


def same(config):
    """What a config says but for what single precision and one end of a text cannot."""
    rounded = {"eps": np.float32(config.eps), "bos": None, "eos": ()}
    return config.to_dict() | rounded | ({} if config.local else {"local_theta": 0})


def folder_of(name, folder):
    """The checkpoint of a reference as transformers wrote it: its tensors by name."""
    file = dict(np.load(REFERENCES / f"{name}.npz"))
    if "shapes" in file:
        shapes = json.loads(str(file["shapes"]))
        tensors = {path: np.asarray(drawn(path, shape)) for path, shape in shapes.items()}
    else:
        tensors = {k: v for k, v in file.items() if "." in k}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    for text in {"config", "generation_config"} & set(file):
        (folder / f"{text}.json").write_text(str(file[text]))
    return tensors
