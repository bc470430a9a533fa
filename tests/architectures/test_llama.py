"""The Llama family computes what transformers computes, and stacks, caches and traces."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from reference_models import reference

from jaxmem.architectures import llama

MEMBERS = ["llama2", "llama3", "mistral", "qwen2", "qwen3", "gemma3"]
SIZES = dict(vocab=64, width=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8)
member = functools.cache(functools.partial(reference, family=llama))


@pytest.mark.parametrize("name", MEMBERS)
def test_logits_equal_the_reference(name):
    config, params, file = member(name)
    logits = jax.jit(llama.module(config).apply)({"params": params}, file["ids"])
    assert np.abs(logits - file["logits"]).max() <= 1e-4


@pytest.mark.parametrize("name", MEMBERS)
def test_recipes_name_every_parameter_with_its_shape(name):
    config, params, file = member(name)
    init = jax.eval_shape(llama.module(config).init, jax.random.key(0), file["ids"])["params"]
    shapes = {path: x.shape for path, x in flatten_dict(init, sep="/").items()}
    assert shapes == {path: r.shape for path, r in llama.weights(config).items()}
    assert shapes == {path: x.shape for path, x in flatten_dict(params, sep="/").items()}


@pytest.mark.parametrize("name", ["llama3", "gemma3"])
def test_a_cache_filled_in_pieces_gives_the_same_logits(name):
    config, params, file = member(name)
    step = jax.jit(llama.module(config).apply)
    cache, logits = config.cache(batch=2, length=40), []
    for start in range(0, 24, 8):
        piece = file["ids"][:, start : start + 8]
        out, cache = step({"params": params}, piece, cache, jnp.int32(start))
        logits.append(out)
    assert np.abs(np.concatenate(logits, axis=1) - file["logits"]).max() <= 1e-4


def test_the_dtype_of_the_parameters_is_that_of_the_computation():
    config, params, file = member("gemma3")
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    program = jax.make_jaxpr(llama.module(config).apply)({"params": half}, file["ids"])
    dots = [e for e in every_equation(program.jaxpr) if e.primitive.name == "dot_general"]
    assert {x.aval.dtype for e in dots for x in e.invars} == {jnp.dtype(jnp.bfloat16)}
    assert {e.outvars[0].aval.dtype for e in dots} == {jnp.dtype(jnp.float32)}


def every_equation(jaxpr):
    for e in jaxpr.eqns:
        yield e
        for value in e.params.values():
            if hasattr(value, "eqns") or hasattr(value, "jaxpr"):
                yield from every_equation(getattr(value, "jaxpr", value))


def test_the_scan_carries_the_cache_and_donation_leaves_no_copy():
    config = llama.Config(**SIZES)
    params = jax.eval_shape(
        llama.module(config).init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32)
    )
    cache = jax.eval_shape(lambda: config.cache(1, 8192))
    ids, position = jax.ShapeDtypeStruct((1, 1), jnp.int32), jax.ShapeDtypeStruct((), jnp.int32)
    step = jax.jit(llama.module(config).apply, donate_argnums=2)
    memory = step.lower(params, ids, cache, position).compile().memory_analysis()
    whole = 2 * 4 * np.prod(cache["k"].shape)
    assert memory.alias_size_in_bytes == whole
    assert memory.temp_size_in_bytes < 0.75 * whole  # one layer of two, and its scores


@pytest.mark.parametrize("wrong", [{"heads": 3}, {"vocab": 0}, {"head_dim": 5}, {"local": (True,)}])
def test_sizes_that_do_not_fit_are_refused(wrong):
    with pytest.raises(ValueError, match=r"expected|divide"):
        llama.Config(**{**SIZES, **wrong})


def test_more_steps_than_the_cache_holds_are_refused():
    config, params, file = member("llama2")
    with pytest.raises(ValueError, match="24 steps for a cache of length 8"):
        llama.module(config).apply({"params": params}, file["ids"], config.cache(2, 8))
