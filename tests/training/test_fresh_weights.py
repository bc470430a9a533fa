"""New weights guess nothing: the first loss is near that of a uniform guess."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxmem as jm
from jaxmem.architectures import encoder, gpt2, llama

SIZES = dict(vocab=64, width=32, layers=2, heads=2)
LLAMA = llama.Config(**SIZES, ffn=48, kv_heads=1, head_dim=16, tied=True)
CONFIGS = {
    "llama": (llama, LLAMA),
    "llama, own head": (llama, dataclasses.replace(LLAMA, tied=False)),
    "gpt2": (gpt2, gpt2.Config(**SIZES, context=16)),
    "bert": (encoder, encoder.Config(**SIZES, ffn=48, context=16, head="masked_lm")),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_new_model_begins_near_a_uniform_guess_and_keeps_its_head(name):
    kind, config = CONFIGS[name]
    model = jm.training.fresh(jm.models.Model(config, kind.module(config), None, name))
    ids, targets = jax.random.randint(jax.random.key(1), (2, 4, 16), 0, 64)
    logits = model.apply(model.params, ids)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()
    own_head = name == "llama, own head"
    assert loss == pytest.approx(math.log(64), abs=1.0 if own_head else 0.1)
    tables = [model.params[n]["embedding"] for n in ("embed", "positions") if n in model.params]
    for table in tables:
        assert jnp.std(table) == pytest.approx(32**-0.5 if own_head else 0.02, rel=0.15)
