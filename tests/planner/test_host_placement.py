"""Weights in host memory: as few as let the rest fit, the same tokens, and no bytes of the chip."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmem as jm
from jaxmem.architectures import llama
from jaxmem.models import Model
from jaxmem.planner.host_placement import stacks_for_host

SIZES = dict(vocab=256, width=128, ffn=256, layers=4, heads=2, kv_heads=2, head_dim=64, tied=True)
CONFIG = llama.Config(**SIZES)
TINY = Model(CONFIG, llama.module(CONFIG), None, "tiny")
SERVE = jm.Recipe("tiny", "cpu", "serve", 2, 64, prompt=8)
UP, DOWN = "layers/mlp/up/kernel", "layers/mlp/down/kernel"


def test_what_is_moved_is_the_least_that_frees_the_bytes():
    params = jm.build(SERVE, model=TINY).parts["weights"]
    names = jm.paths(params)
    freed = {n: x.size for n, x in zip(names, jax.tree.leaves(params)) if n.startswith("layers")}
    freed = {n: 2 * size // 2 for n, size in freed.items() if "kernel" in n}  # two of four layers
    for share in (0.1, 0.35, 0.8):
        excess = int(share * sum(freed.values()))
        chosen = stacks_for_host(params, excess)
        moved = sum(freed[n] for n in chosen)
        assert excess <= moved < excess + min(freed.values())
    assert stacks_for_host(params, sum(freed.values()) + 1) == ()


@pytest.mark.parametrize("options", [{}, {"encoding": jm.Int(8)}, {"pages": 4}], ids=str)
def test_a_step_with_weights_on_the_host_writes_the_same_tokens(options):
    recipe = dataclasses.replace(SERVE, **options)
    params = llama.module(CONFIG).init(jax.random.key(0), jnp.ones((1, 1), jnp.int32))["params"]
    prompt = jnp.arange(16, dtype=jnp.int32).reshape(2, 8)
    written = []
    for host in ((), (UP, DOWN)):
        built = jm.build(dataclasses.replace(recipe, host=host), model=TINY)
        cache, weights = built.init(params, None)
        stack = weights["layers"]["mlp"]["up"]["kernel"]
        kinds = {x.sharding.memory_kind for x in jax.tree.leaves(stack) if x.ndim > 2}
        assert ("pinned_host" in kinds) == bool(host)
        places = ((), ()) if recipe.pages else ((jnp.int32(0),), (jnp.int32(8),))
        cache, ids = built.programs["prompt"][0](cache, weights, prompt, *places[0])
        written.append(np.asarray(built.step(cache, weights, ids, *places[1])[1]))
    np.testing.assert_array_equal(*written)


@pytest.mark.parametrize(
    ("options", "host"),
    [
        ({}, ("cache/k", "cache/v", UP)),
        ({"cache_bits": 8}, ("cache/keys/codes", "cache/values/codes")),
        ({"pages": 4}, ("cache/stores/0/keys",)),
        ({"pages": 4, "cache_bits": 4, "encoding": jm.Int(8)}, ("cache/stores/0/keys", UP)),
    ],
    ids=str,
)
def test_a_step_with_keys_and_values_on_the_host_writes_the_same_tokens(options, host):
    recipe = dataclasses.replace(SERVE, prompt=64, seq=128, **options)
    config = dataclasses.replace(CONFIG, head_dim=64 if recipe.pages else 128)
    params = llama.module(config).init(jax.random.key(0), jnp.ones((1, 1), jnp.int32))["params"]
    model = Model(config, llama.module(config), None, "tiny")
    prompt = jnp.arange(128, dtype=jnp.int32).reshape(2, 64)
    caches, written = [], []
    for names in ((), host):
        built = jm.build(dataclasses.replace(recipe, host=names), model=model)
        cache, weights = built.init(params, None)
        place = lambda n: () if recipe.pages else (jnp.int32(n),)
        cache, ids = built.programs["prompt"][0](cache, weights, prompt, *place(0))
        cache, ids = built.step(cache, weights, ids, *place(64))
        cache, ids = built.step(cache, weights, ids, *place(65))
        kinds = {x.sharding.memory_kind for x in jax.tree.leaves(cache)}
        assert ("pinned_host" in kinds) == bool(names)
        written.append(np.asarray(ids))
        caches.append(jax.device_get(cache))
    np.testing.assert_array_equal(*written)
    for a, b in zip(*map(jax.tree.leaves, caches)):
        np.testing.assert_allclose(*map(np.float32, (a, b)), rtol=0, atol=1e-2)


def test_a_recipe_names_what_is_on_the_host_and_where_that_cannot_be():
    recipe = dataclasses.replace(SERVE, host=[UP])
    assert jm.Recipe.from_json(recipe.to_json()) == recipe and UP in recipe.summary
    for wrong in ({"task": "train"}, {"device": "tpu v5e:2x2"}):
        with pytest.raises(ValueError, match=r"host is .* expected to serve on one device"):
            dataclasses.replace(recipe, **wrong)
    with pytest.raises(ValueError, match="rule 'up' matches no leaf"):
        jm.build(dataclasses.replace(recipe, host=["up"]), model=TINY)


@pytest.mark.slow
def test_a_plan_leaves_weights_on_the_host_if_nothing_else_fits_a_chip():
    pytest.importorskip("libtpu")
    options = dict(device="tpu v5e:1x1", task="serve", batch=2, seq=64, most=1, encodings=[None])
    config = dataclasses.replace(CONFIG, layers=16)
    model = Model(config, llama.module(config), None, "tiny")
    whole = jm.plan(model, **options)
    assert whole.recipe.host == ()
    limit = whole.chosen.peak * 3 // 4
    less = jm.plan(model, limit=limit, **options)
    assert less.recipe.host and less.chosen.peak <= limit
    assert less.chosen.programs["step"].host > whole.chosen.peak - limit
    assert less.seconds(less.chosen) > whole.seconds(whole.chosen)
