"""Recipes: the steps they build learn and serve as the plain model does, on one chip or eight."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmem as jm
from jaxmem.architectures import llama
from jaxmem.models import Model

SIZES = dict(vocab=64, width=32, ffn=64, layers=4, heads=4, kv_heads=2, head_dim=8, tied=True)
CONFIG = llama.Config(**SIZES)
NET = llama.module(CONFIG)
IDS = np.asarray(jax.random.randint(jax.random.key(1), (8, 16), 0, 64, jnp.int32))
SGD = optax.sgd(0.3)
FAST = {"xla_backend_optimization_level": 0}


@pytest.fixture(scope="module")
def model():
    shapes = jax.eval_shape(NET.init, jax.random.key(0), IDS[:1])["params"]
    draw = lambda x: np.random.default_rng(0).normal(0, 0.2, x.shape).astype(np.float32)
    params = jax.tree.map(lambda x: draw(x) if x.ndim > 2 else np.ones(x.shape, x.dtype), shapes)
    params["embed"]["embedding"] = draw(shapes["embed"]["embedding"])
    return Model(CONFIG, params, None, "tiny")


def recipe(task, **changes):
    return jm.Recipe("tiny", "cpu", task, *changes.pop("size", (8, 16)), **changes)


def losses(model, recipe, steps=4, optimizer=SGD):
    built = jm.build(recipe, model=model, optimizer=optimizer)
    state, params = built.init(model.params, jax.random.key(2))
    frozen_params = (params,) if recipe.task == "lora" else ()
    step = built.step.lower(state, *frozen_params, IDS).compile(compiler_options=FAST)
    step_losses = []
    for _ in range(steps):
        state, loss = step(state, *frozen_params, IDS)
        step_losses.append(float(loss))
    return step_losses


@pytest.fixture(scope="module")
def plain(model):
    return losses(model, recipe("train", remat=jm.Remat("none"), chunk=16))


@pytest.mark.parametrize(
    "changes",
    [
        dict(remat=jm.Remat("named", ("attn_out",)), micro=4, chunk=4),
        dict(remat=jm.Remat("nested"), state="bfloat16"),
        dict(remat=jm.Remat("dots_no_batch"), offload=True),
        dict(release=True, micro=2, encoding=jm.Int(8), remat=jm.Remat("full", held="int8")),
    ],
    ids=str,
)
def test_a_cheaper_recipe_learns_as_the_plain_one_does(model, plain, changes):
    assert plain[-1] < plain[0] - 0.1
    np.testing.assert_allclose(losses(model, recipe("train", **changes)), plain, rtol=0.02)


def test_adapters_learn_beside_weights_that_stay(model):
    adam, options = optax.adam(1e-2), dict(encoding=jm.Int(4, group=8), rank=4)
    step_losses = losses(model, recipe("lora", **options), steps=6, optimizer=adam)
    assert step_losses[-1] < step_losses[0] - 0.1


@pytest.mark.parametrize("bits", [16, 8])
def test_serving_continues_as_the_model_itself_does(model, bits):
    built = jm.build(recipe("serve", size=(2, 64), cache_bits=bits, prompt=64), model=model)
    cache, params = built.init(model.params)
    (prompt, _), step = built.programs["prompt"], built.step
    ids = np.asarray(jax.random.randint(jax.random.key(3), (2, 64), 0, 64, jnp.int32))
    ids = ids if bits == 8 else ids[:, :48]
    cache, token = prompt(cache, params, ids, 0)
    wide = jax.tree.map(lambda w: w.astype(jnp.float32), params)
    logits = NET.apply({"params": wide}, ids)[:, -1]
    chosen = np.take_along_axis(np.asarray(logits), np.asarray(token), -1)[:, 0]
    assert (np.asarray(logits).max(-1) - chosen < 0.02).all()  # the likeliest, up to rounding
    if bits == 16:
        cache, token = step(cache, params, token, 48)
        assert token.shape == (2, 1) and cache["k"].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("axes", "shared", "parts"),
    [
        ({"fsdp": 8}, True, 8),
        ({"fsdp": 8}, False, 1),
        ({"fsdp": 4, "tensor": 2}, True, 8),
        ({"data": 2, "fsdp": 2, "tensor": 2}, False, 2),
    ],
)
def test_eight_chips_learn_what_one_does(model, plain, axes, shared, parts):
    sharded = recipe("train", remat=jm.Remat("full"), shared=shared, mesh=axes)
    sharded = dataclasses.replace(sharded, device="tpu v5e:2x4")
    built = jm.build(sharded, model=model, mesh=jm.mesh(**axes), optimizer=SGD)
    state, _ = built.init(model.params)
    state, ids = jax.device_put((state, IDS), built.shardings)
    step = built.step.lower(state, ids).compile(compiler_options=FAST)
    step_losses = []
    for _ in range(4):
        state, loss = step(state, ids)
        step_losses.append(float(loss))
    np.testing.assert_allclose(step_losses, plain, rtol=0.02)
    kernel = state["params"]["layers"]["mlp"]["up"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // parts


@pytest.mark.slow
def test_a_state_on_the_hosts_of_eight_chips_learns_and_stays_there(model):
    adam, axes = optax.adam(1e-2), {"fsdp": 4, "tensor": 2}
    built = jm.build(recipe("train", offload=True, mesh=axes), model=model, optimizer=adam)
    state, _ = built.init(model.params)
    step = built.step.lower(state, IDS).compile(compiler_options=FAST)
    step_losses = []
    for _ in range(3):
        state, loss = step(state, IDS)
        step_losses.append(float(loss))
    on_one = losses(model, recipe("train"), steps=3, optimizer=adam)
    np.testing.assert_allclose(step_losses, on_one, rtol=0.02)
    arrays, places = map(jax.tree.leaves, (state, built.shardings[0]))
    assert all(x.sharding.is_equivalent_to(place, x.ndim) for x, place in zip(arrays, places))
    moments = [x for x in jax.tree.leaves(state["opt"]) if x.ndim]
    assert {x.sharding.memory_kind for x in moments} == {"pinned_host"}


@pytest.mark.slow
def test_adapters_on_eight_chips_learn_what_they_learn_on_one(model):
    axes = {"fsdp": 4, "tensor": 2}
    on_one = recipe("lora", encoding=jm.Int(4, group=8), rank=4)
    built = jm.build(dataclasses.replace(on_one, mesh=axes), model=model, optimizer=SGD)
    state, params = built.init(model.params, jax.random.key(2))
    step = built.step.lower(state, params, IDS).compile(compiler_options=FAST)
    step_losses = []
    for _ in range(2):
        state, loss = step(state, params, IDS)
        step_losses.append(float(loss))
    np.testing.assert_allclose(step_losses, losses(model, on_one, steps=2), rtol=0.02)
    arrays, places = map(jax.tree.leaves, ((state, params), built.shardings[:2]))
    assert all(x.sharding.is_equivalent_to(place, x.ndim) for x, place in zip(arrays, places))


@pytest.mark.parametrize("bits", [16, pytest.param(8, marks=pytest.mark.slow)])
def test_serving_on_four_chips_is_serving_on_one(model, bits):
    on_one = recipe("serve", size=(2, 64), cache_bits=bits, encoding=jm.Int(8), prompt=64)
    ids = np.asarray(jax.random.randint(jax.random.key(3), (2, 64), 0, 64, jnp.int32))
    tokens, caches = [], []
    for axes in ({}, {"data": 2, "tensor": 2}):
        built = jm.build(dataclasses.replace(on_one, mesh=axes), model=model)
        cache, params = built.init(model.params)
        cache, token = built.programs["prompt"][0](cache, params, ids, 0)
        tokens.append(np.asarray(token))
        caches.append(cache)
    np.testing.assert_array_equal(*tokens)
    on_device = lambda x: x.addressable_shards[0].data.size
    sizes = [sum(map(on_device, jax.tree.leaves(cache))) for cache in caches]
    assert sizes[1] * 4 == sizes[0]


def test_a_recipe_is_its_json():
    remat = jm.Remat("named", ("mlp_out",))
    on_one_device = recipe("lora", encoding=jm.Int(4, group=128), remat=remat)
    assert jm.Recipe.from_json(on_one_device.to_json()) == on_one_device
    on_mesh = dataclasses.replace(on_one_device, mesh={"tensor": 2, "data": 1, "fsdp": 4})
    assert jm.Recipe.from_json(on_mesh.to_json()) == on_mesh
    assert json.loads(on_mesh.to_json())["mesh"] == {"fsdp": 4, "tensor": 2}
    data = json.loads(on_one_device.to_json())
    for broken in ("{", json.dumps(data | {"colour": 1}), json.dumps([data])):
        with pytest.raises(ValueError, match="not the JSON text of a Recipe"):
            jm.Recipe.from_json(broken)


@pytest.mark.parametrize(
    ("task", "shared", "axes"),
    [
        ("train", True, {"fsdp": 8}),
        ("lora", False, {"fsdp": 8}),
        ("serve", True, {"tensor": 8}),
        ("serve", False, {"data": 8}),
    ],
)
def test_a_recipe_of_version_0_1_0_is_read_and_names_its_mesh(task, shared, axes):
    text = """{"model": "tiny", "device": "tpu v5e:2x4", "task": "%s", "batch": 8, "seq": 16,
      "encoding": null, "cache_bits": 16, "state": "bfloat16",
      "remat": {"kind": "named", "names": ["attn_out"]}, "offload": false, "micro": 1,
      "chunk": 16, "rank": 16, "prompt": 64, "shared": %s}"""
    old = jm.Recipe.from_json(text % (task, json.dumps(shared)))
    assert old.axes == axes and old.shared is shared and "mesh" not in old.to_json()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (functools.partial(recipe, "sing"), "unknown task"),
        (functools.partial(recipe, "train", micro=3), "3 micro-batches of a batch of 8"),
        (functools.partial(recipe, "train", encoding=jm.Int(4)), "training moves every weight"),
        (functools.partial(recipe, "train", state="int3"), "state is 'int3'"),
        (functools.partial(recipe, "train", optimizer="sgd"), "optimizer is 'sgd'"),
        (functools.partial(recipe, "train", encoding=jm.Int(8)), "cannot move: expected release"),
        (functools.partial(recipe, "lora", release=True), "release is True and task is 'lora'"),
        (functools.partial(recipe, "serve", optimizer="scale"), "for 'serve'"),
        (
            functools.partial(recipe, "train", release=True, remat=jm.Remat("none")),
            "release is True and remat is 'none'",
        ),
        (functools.partial(recipe, "train", mesh={"stage": 2}), "the mesh has axis 'stage'"),
        (functools.partial(recipe, "train", mesh={"fsdp": 0}), "the mesh has fsdp=0"),
    ],
)
def test_values_that_do_not_go_together_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("axes", "mesh", "message"),
    [
        (None, lambda: jax.make_mesh((8,), ("chips",)), r"axes \('chips',\), expected jm.mesh\(fs"),
        ({"fsdp": 8}, lambda: jm.mesh(fsdp=4, tensor=2), "expected the recipe's {'fsdp': 8}"),
        (None, lambda: jm.mesh(fsdp=4), "a mesh of 4 devices, but tpu v5e:2x4 has 8"),
        ({"fsdp": 4}, lambda: None, "a mesh of 4 devices, but tpu v5e:2x4 has 8"),
    ],
)
def test_a_mesh_that_is_not_the_recipe_s_is_refused(model, axes, mesh, message):
    on_mesh = dataclasses.replace(recipe("train"), device="tpu v5e:2x4", mesh=axes)
    with pytest.raises(ValueError, match=message):
        jm.build(on_mesh, model=model, mesh=mesh())


@pytest.mark.slow
def test_a_state_of_eight_bits_learns_as_one_of_32_does():
    config = llama.Config(**SIZES | dict(width=256, layers=2, ffn=256, head_dim=64))
    small = Model(config, llama.module(config), None, "small")
    params = jax.jit(small.tensors.init)(jax.random.key(0), IDS[:1])["params"]
    step_losses = {}
    for state in ("float32", "int8"):
        changed = recipe("train", state=state, micro=2, offload=state == "int8")
        small = dataclasses.replace(small, tensors=params)
        step_losses[state] = losses(small, changed, steps=6, optimizer=optax.adam(3e-3))
    assert step_losses["int8"][-1] < step_losses["int8"][0] - 0.1
    np.testing.assert_allclose(step_losses["int8"], step_losses["float32"], rtol=0.02)


@pytest.mark.slow
def test_an_offloaded_state_lies_with_the_host_of_a_tpu():
    pytest.importorskip("libtpu")
    config = llama.Config(**SIZES | dict(width=256, ffn=512, head_dim=64))
    small = Model(config, llama.module(config), None, "small")
    memories = {}
    for offload in (True, False):
        options = dict(device="tpu v5e:1x1", state="bfloat16", offload=offload)
        built = jm.build(dataclasses.replace(recipe("train", size=(2, 64)), **options), model=small)
        memories[offload] = jm.memory(built.step, *built.arguments, device="tpu v5e:1x1")
    state_bytes = sum(jm.nbytes(x) for x in jax.tree.leaves(built.arguments[0]["opt"]) if x.ndim)
    assert (memories[True].host, memories[False].host) == (state_bytes, 0)
    assert memories[True].peak < memories[False].peak
