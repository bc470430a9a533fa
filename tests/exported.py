"""What the tests of exports share: an encoded model, and a comparison of decoded trees."""

import jax
import numpy as np

import jaxmem as jm

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
