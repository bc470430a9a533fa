"""Donation: what a step keeps twice is named with its bytes."""

import jax
import jax.numpy as jnp
import pytest

import jaxmem as jm


def step(state, batch):
    w = state["w"] - batch.sum()
    return {"w": w, "count": state["count"] + 1}, w.sum()


STATE = {
    "w": jax.ShapeDtypeStruct((128, 64), jnp.float32),
    "count": jax.ShapeDtypeStruct((), "int32"),
}
BATCH = jax.ShapeDtypeStruct((32,), jnp.float32)


@pytest.mark.parametrize("own", [False, True])
def test_the_cost_is_what_the_compiler_saves(own):
    kept = jm.donations(step, STATE, BATCH)
    assert list(kept.missed) == ["args[0]['count']", "args[0]['w']"] and not kept.vain
    given = jm.memory(step, STATE, BATCH, donate_argnums=0)
    assert kept.cost == given.aliased == jm.memory(step, STATE, BATCH).peak - given.peak
    if own:
        gone = jm.donations(jax.jit(step, donate_argnums=0), STATE, BATCH)
    else:
        gone = jm.donations(step, STATE, BATCH, donate_argnums=0)
    assert gone.cost == 0 and not gone.vain


def test_one_result_takes_over_one_argument():
    both = jm.donations(lambda a, b: a + b, BATCH, BATCH)
    assert list(both.missed) == ["args[0]"]
    vain = jm.donations(lambda a, b: a + b, BATCH, BATCH, donate_argnums=(0, 1))
    assert vain.cost == 0 and list(vain.vain) == ["args[1]"] and "donated in vain" in str(vain)


def test_the_steps_of_recipes_hold_nothing_twice():
    from jaxmem.architectures import llama
    from jaxmem.models import Model

    config = llama.Config(
        vocab=64, width=32, ffn=64, layers=2, heads=4, kv_heads=2, head_dim=8, tied=True
    )
    tiny = Model(config, llama.module(config), None, "tiny")
    for task in ("train", "lora", "serve"):
        built = jm.build(jm.Recipe("tiny", "cpu", task, 2, 64), model=tiny)
        found = jm.donations(built.step, *built.arguments)
        assert not found.vain and set(found.missed) <= {"args[2]"}  # to serve, ids as a batch is
