"""Recipes of every family of decoders: their steps compute what the models do, or are refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cheap_jit import OPTIONS
from reference_models import member

import jaxmem as jm
from jaxmem.architectures import bert, gpt2
from jaxmem.architectures.decoder import module
from jaxmem.models import Model
from jaxmem.planner.product_counts import token_weights

SMALL = dict(chunk=4, rank=2, prompt=4)


def model(name):
    config, params, _, _ = member(name)
    return Model(config, params, None, name)


def recipe(task, batch=4, seq=8, **changes):
    return jm.Recipe("tiny", "cpu", task, batch, seq, **SMALL | changes)


def compiled(step, *args):
    return step.lower(*args).compile(compiler_options=OPTIONS)


# A soft cap, a factor of the logits, a bias of the head, and two segments of layers.
@pytest.mark.parametrize("name", ["gemma2", "cohere", "phi", "deepseek_v3", "opt_projected"])
def test_the_loss_of_a_step_is_the_cross_entropy_of_the_model_s_logits(name):
    _, params, file, _ = member(name)
    ids = jnp.asarray(file["ids"], jnp.int32)[:, :8]
    built = jm.build(recipe("train", len(ids), remat=jm.Remat("none")), model=model(name))
    got = compiled(jax.jit(built.loss), params, ids)(params, ids)
    logits = file["logits"][:, : ids.shape[1] - 1]
    want = optax.softmax_cross_entropy_with_integer_labels(logits, np.asarray(ids)[:, 1:]).mean()
    np.testing.assert_allclose(got, want, rtol=1e-4)


@functools.cache
def first_token(name, encoding, **axes):
    """(the likeliest token after four ids on a mesh, the bytes of weights on one device)."""
    chosen = recipe("serve", encoding=encoding, mesh=axes)
    built = jm.build(chosen, model=model(name))
    cache, params = built.init(member(name)[1])
    ids = jnp.tile(jnp.asarray(member(name)[2]["ids"], jnp.int32)[:1, :4], (4, 1))
    step = compiled(built.step, cache, params, ids, 0)
    sizes = [x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(params)]
    return step(cache, params, ids, 0)[1].tolist(), sum(sizes)


SLOW = functools.partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("name", "encoding"),
    [("qwen3_moe", None), SLOW("deepseek_v3", jm.Int(8))],
)
def test_a_mixture_is_served_with_its_experts_over_devices(name, encoding):
    tokens, size = first_token(name, encoding)
    on_mesh, shard_size = first_token(name, encoding, data=2, expert=2)
    assert tokens == on_mesh and shard_size < size


@pytest.mark.slow
def test_a_mixture_is_planned_and_its_arithmetic_is_a_bound():
    options = dict(device="cpu", task="serve", batch=1, seq=8, limit=2**24, most=1)
    planned = jm.plan(model("qwen3_moe"), encodings=[jm.Int(8)], **options)
    assert planned.recipe.encoding == jm.Int(8)
    assert all(row.bound <= row.peak for row in planned.rows)


def test_a_token_meets_its_experts_only():
    config, params, _, _ = member("qwen3_moe")
    others, of_experts = token_weights(config, params)
    stacks = jm.nbytes([params["layers"]["mlp"]["experts"][n] for n in ("gate", "up", "down")])
    assert of_experts == stacks / 4 * config.mixture.per_token / config.mixture.experts
    assert 0 < others < sum(x.size for x in jax.tree.leaves(params))


@pytest.mark.slow
def test_a_mixture_over_experts_and_fsdp_learns_as_on_one_device():
    losses = []
    for axes in ({}, {"fsdp": 2, "expert": 2}):
        sgd = optax.sgd(0.3)
        built = jm.build(recipe("train", mesh=axes), model=model("qwen3_moe"), optimizer=sgd)
        state, _ = built.init(member("qwen3_moe")[1])
        ids = jnp.tile(jnp.asarray(member("qwen3_moe")[2]["ids"], jnp.int32)[:1, :8], (4, 1))
        step = compiled(built.step, state, ids)
        losses.append([float((out := step(state, ids))[1])])
        losses[-1].append(float(step(out[0], ids)[1]))
    assert losses[0][1] < losses[0][0]
    np.testing.assert_allclose(*losses, rtol=0.02)


# Learned positions, slopes, a mixture with latents, a state.
# experiments/memory/plan_every_family.py does this for every member.
@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "bloom", "deepseek_v3", "mamba"])
def test_a_family_has_a_step_of_each_task_on_one_device_and_on_four(name):
    config = gpt2.Config(vocab=64, width=32, layers=2, heads=4)
    net = gpt2.module(config) if name == "gpt2" else module(config := member(name)[0])
    abstract = Model(config, net, None, name)
    tasks = {"serve": {"data": 2, "tensor": 2}, "lora": {"fsdp": 4}, "train": {"fsdp": 4}}
    for task, axes in tasks.items():
        for mesh in ({}, axes):
            encoding = None if task == "train" else jm.Int(4)
            built = jm.build(recipe(task, encoding=encoding, mesh=mesh), model=abstract)
            jax.eval_shape(built.step, *built.arguments)


ENCODER = Model(bert.Config(vocab=64, width=32, ffn=48, layers=2, heads=4), {}, None, "bert")


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("bert", {}, "bert is of family 'bert', expected a decoder"),
        ("deepseek_v3", dict(cache_bits=8), "the latents of deepseek_v3 are cached in floats"),
        ("mamba", dict(cache_bits=4), "the recurrent states of mamba are cached in floats"),
        ("gemma2", dict(mesh={"expert": 2}), "expert=2, but there are no experts in gemma2"),
        ("qwen3_moe", dict(mesh={"expert": 7}), "experts of qwen3_moe do not divide over expert=7"),
        ("opt", dict(seq=4096), "opt has learned positions; expected at most"),
    ],
)
def test_what_a_family_cannot_do_is_refused_by_name(name, changes, message):
    with pytest.raises(ValueError, match=message):
        chosen = ENCODER if name == "bert" else model(name)
        jm.build(recipe("serve", **changes), model=chosen)


def test_a_plan_of_an_encoder_is_refused_before_anything_is_built():
    with pytest.raises(ValueError, match="expected a decoder"):
        jm.plan(ENCODER, device="cpu", task="serve", batch=1, seq=8, limit=2**24)
