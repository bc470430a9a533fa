"""Small trees, models and files that the right calls of public names are made with."""

import pathlib
import types

import jax
import jax.numpy as jnp
import optax

import jaxmem as jm
from jaxmem.architectures import llama


def text_file(folder: pathlib.Path) -> pathlib.Path:
    """A file with a text."""
    path = folder / "text.txt"
    path.write_text("w1 w2 w3")
    return path


def uniform(*shape: int) -> jax.Array:
    return jax.random.uniform(jax.random.key(0), shape, minval=-1.0)


def apply(params: dict, x: jax.Array) -> jax.Array:
    return x @ params["w"]


def loss(params: dict, x: jax.Array) -> jax.Array:
    return (apply(params, x) ** 2).mean()


def layers(w: jax.Array, x: jax.Array) -> jax.Array:
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]


def blank_model(family: types.ModuleType, **sizes: int) -> jm.models.Model:
    config = family.Config(**sizes)
    module, ids = family.module(config), jnp.ones((1, 8), jnp.int32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), ids)["params"]
    return jm.models.Model(config, jax.tree.map(lambda s: uniform(*s.shape), shapes), None, "blank")


def objects(folder: pathlib.Path) -> types.SimpleNamespace:
    """What calls of several kinds are made with; files are written to `folder`."""
    params, x = {"w": uniform(32, 8)}, uniform(4, 32)
    sizes = {"vocab": 64, "width": 32, "ffn": 48, "layers": 2, "heads": 4, "kv_heads": 2}
    model = blank_model(llama, **sizes, head_dim=8)
    batches, ids = [(x,), (x + 1,)], jnp.arange(30).reshape(1, 30)
    return types.SimpleNamespace(
        folder=folder,
        params=params,
        x=x,
        batches=batches,
        uses=jm.uses(apply, params, x),
        stats=jm.stats(apply, params, batches),
        encoded=jm.encode(params, {"w": jm.Int(8)}),
        pairs=jm.adapters.adapters(jax.random.key(0), params, 4, "w"),
        int8=jm.Int(8),
        sparse={"w": jm.Bitmask(0.5)},
        sgd=optax.sgd(0.1),
        ids=ids,
        model=model,
        model_stats=jm.stats(model.apply, model.params, [(ids,)]),
    )
