"""Donation: an argument that a step holds twice is named with its bytes."""

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


@pytest.mark.parametrize("by_jit", [False, True])
def test_the_cost_is_what_the_compiler_saves(by_jit):
    undonated = jm.donations(step, STATE, BATCH)
    assert list(undonated.missed) == ["args[0]['count']", "args[0]['w']"] and not undonated.vain
    before = jm.memory(step, STATE, BATCH)
    after = jm.memory(step, STATE, BATCH, donate_argnums=0)
    assert undonated.cost == after.aliased == before.peak - after.peak
    if by_jit:
        donated = jm.donations(jax.jit(step, donate_argnums=0), STATE, BATCH)
    else:
        donated = jm.donations(step, STATE, BATCH, donate_argnums=0)
    assert donated.cost == 0 and not donated.vain


def test_one_result_takes_over_one_argument():
    undonated = jm.donations(lambda a, b: a + b, BATCH, BATCH)
    assert list(undonated.missed) == ["args[0]"]
    donated = jm.donations(lambda a, b: a + b, BATCH, BATCH, donate_argnums=(0, 1))
    assert donated.cost == 0 and list(donated.vain) == ["args[1]"]
    assert "donated in vain" in str(donated)


def test_the_steps_of_recipes_hold_nothing_twice():
    from jaxmem.architectures import llama
    from jaxmem.models import Model

    config = llama.Config(
        vocab=64, width=32, ffn=64, layers=2, heads=4, kv_heads=2, head_dim=8, tied=True
    )
    tiny = Model(config, llama.module(config), None, "tiny")
    for task in ("train", "lora", "serve"):
        built = jm.build(jm.Recipe("tiny", "cpu", task, 2, 64), model=tiny)
        report = jm.donations(built.step, *built.arguments)
        assert not report.vain and set(report.missed) <= {"args[2]"}  # the ids of a serving step
