"""Small models of several families, and pools of pages that they read and write."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import jaxmem as jm
from jaxmem.architectures import gpt2, llama
from jaxmem.models import Model

SIZES = dict(vocab=64, width=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8)
WIDE = dict(heads=2, kv_heads=1, head_dim=128, layers=1)  # keys and values in arrays of their own
CONFIGS = {
    "llama": llama.Config(**SIZES),
    "windows": llama.Config(
        **SIZES, local=(True, False), window=11, attention_softcap=5.0, sinks=True
    ),
    "wide": llama.Config(**SIZES | WIDE, positions="alibi", norm="layer"),
    "local": llama.Config(**SIZES, local=(True, True), window=10),
    "one": llama.Config(**SIZES | dict(layers=1)),
    "some": llama.Config(**SIZES | dict(layers=3), local=(True, True, False), window=11),
    "gpt2": gpt2.Config(vocab=64, width=32, layers=2, heads=4, context=64),
}
IDS = jax.random.randint(jax.random.key(1), (3, 32), 0, 64, jnp.int32)
SIZE = 8
CODES = dict(bits=4, rotate=True)


@functools.cache
def model_of(family):
    config = CONFIGS[family]
    module = (gpt2 if family == "gpt2" else llama).module(config)
    shapes = jax.eval_shape(module.init, jax.random.key(0), IDS)["params"]
    draw = np.random.default_rng(0).standard_normal
    params = jax.tree.map(lambda x: jnp.asarray(draw(x.shape, np.float32) * 0.2), shapes)
    return Model(config, params, None, "random")


@functools.cache
def read_of(family):
    """Reads a chunk of ids into a pool: each row the tokens that are asked for it."""
    model = model_of(family)

    @jax.jit
    def read(params, ids, pool, tokens):
        pool, ok = jm.pages.alloc(pool, tokens)
        logits, pool = model.apply(params, ids, pool)
        return logits, pool, ok

    def checked(pool, ids, tokens, params=model.params):
        logits, pool, ok = read(params, ids, pool, jnp.asarray(tokens, jnp.int32))
        assert ok.all()
        return logits, pool

    return checked


def empty(family, bits=None, rotate=False):
    options = jm.Pages(bits, size=SIZE, rotate=rotate)
    return options.empty(CONFIGS[family], pages=20, rows=3, most=6)
