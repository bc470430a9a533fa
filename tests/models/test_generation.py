"""Generation with a cache writes what the uncached model would, and the same for the same seed."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chat_models import Letters
from reference_models import reference

import jaxmem as jm
from jaxmem.architectures import bert, gpt2, llama
from jaxmem.kv_cache.quantized import KVCache
from jaxmem.models import BeamSearch, Model
from jaxmem.models.device_decode_loop import decode
from jaxmem.models.generation import generate
from jaxmem.models.next_token_logits import logits_after
from jaxmem.models.sampling import Sampling, pick

PREFIX = {"gpt2": "transformer.", "llama2": "", "gemma3": ""}


@functools.cache
def model(name):
    family = gpt2 if name == "gpt2" else llama
    config, params, _ = reference(name, family, PREFIX[name])
    return Model(dataclasses.replace(config, eos=()), params, None, name)


@pytest.mark.parametrize("name", PREFIX)
def test_greedy_with_a_cache_equals_argmax_without(name):
    m, ids = model(name), np.asarray([[3, 1, 4], [1, 5, 9]])
    apply = jax.jit(m.apply)
    for _ in range(10):
        padded = jnp.zeros((2, 16), jnp.int32).at[:, : ids.shape[1]].set(ids)
        token = apply(m.params, padded)[:, ids.shape[1] - 1].argmax(-1)
        ids = np.concatenate([ids, token[:, None]], axis=1)
    assert (generate(m, ids[:, :3], max_new_tokens=10).ids == ids[:, 3:]).all()
    assert len(set(ids[0, 3:].tolist())) > 2


def test_a_single_beam_is_greedy():
    m, prompt = model("gpt2"), [3, 1, 4]
    greedy = generate(m, prompt, max_new_tokens=6).ids
    beams = generate(m, prompt, max_new_tokens=6, beams=BeamSearch(1)).ids
    np.testing.assert_array_equal(beams, greedy)


def test_prompts_of_different_lengths_each_write_what_they_write_alone():
    m, prompts = model("gpt2"), [[3, 1, 4], [1, 5], (9, 2, 6)]
    together = generate(m, prompts, max_new_tokens=6)
    alone = [generate(m, prompt, max_new_tokens=6).ids[0] for prompt in prompts]
    np.testing.assert_array_equal(together.ids, alone)
    assert [row.tolist() for row in together.prompt] == [[3, 1, 4], [1, 5], [9, 2, 6]]


def test_a_row_of_another_length_that_ends_early_is_filled_with_its_end_token():
    m, prompts = model("llama2"), [[1, 2, 3], [4, 5]]
    first = generate(m, prompts[0], max_new_tokens=6).ids[0]
    ends = Model(dataclasses.replace(m.config, eos=(int(first[0]),)), m.params, None, "")
    assert set(generate(ends, prompts, max_new_tokens=6).ids[0].tolist()) == {int(first[0])}


def test_samples_are_the_same_for_the_same_seed_only():
    draw = lambda seed: (
        generate(model("llama2"), [1, 2, 3], max_new_tokens=12, temperature=2.0, seed=seed).ids
    )
    assert (draw(0) == draw(0)).all()
    assert (draw(0) != draw(1)).any()


def test_one_token_of_choice_is_greedy():
    m = model("llama2")
    greedy = generate(m, [1, 2, 3], max_new_tokens=6).ids
    for only in ({"top_k": 1}, {"top_p": 1e-6}):
        drawn = generate(m, [1, 2, 3], max_new_tokens=6, temperature=1.0, **only).ids
        assert (drawn == greedy).all()


@pytest.mark.parametrize(
    "options, allowed",
    [
        ({"top_k": 2}, {0, 1}),
        ({"top_p": 0.6}, {0, 1}),
        ({"top_p": 0.4}, {0}),
        ({"min_p": 0.29}, {0, 1, 2}),
        ({}, {0, 1, 2, 3}),
    ],
)
def test_sampling_keeps_the_likeliest(options, allowed):
    logits = jnp.log(jnp.asarray([[0.5, 0.3, 0.15, 0.05]] * 400))
    drawn = pick(logits, jax.random.key(0), 0, Sampling(1.0, **options))
    assert set(np.asarray(drawn).tolist()) == allowed


def test_an_end_token_ends():
    m = model("llama2")
    ids = generate(m, [1, 2, 3], max_new_tokens=10).ids[0]
    end = next(i for i in range(1, 10) if ids[i] not in ids[:i])
    config = dataclasses.replace(m.config, eos=(int(ids[end]),))
    stopped = generate(Model(config, m.params, None, ""), [1, 2, 3], max_new_tokens=10).ids[0]
    assert stopped.tolist() == ids[: end + 1].tolist()


def test_other_weights_and_prompts_of_like_length_compile_nothing_more():
    m = model("llama2")
    generate(m, [1, 2, 3], max_new_tokens=4)
    compiled = logits_after._cache_size(), decode._cache_size()
    other = Model(m.config, jax.tree.map(lambda x: x * 2, m.params), None, "")
    generate(other, [1, 2, 3, 4, 5], max_new_tokens=9)
    assert (logits_after._cache_size(), decode._cache_size()) == compiled


def test_encoded_parameters_write_what_their_values_write():
    m = model("llama2")
    uses = jm.uses(m.apply, m.params, np.zeros((1, 4), np.int32))
    plan = jm.choose(m.params, {r"embed/embedding|.*kernel": jm.Int(8)})
    encoded = jax.jit(lambda p: jm.encode(p, plan, uses=uses))(m.params)
    write = lambda p: generate(Model(m.config, p, None, ""), [3, 1, 4], max_new_tokens=10).ids
    assert (write(encoded) == write(jm.decode(encoded))).all()


def test_text_goes_in_comes_out_and_streams():
    m, pieces = model("llama2"), []
    named = Model(m.config, m.params, Letters(), "")
    out = generate(named, "BCD", max_new_tokens=5, stream=pieces.append)
    assert (out.ids == generate(m, [1, 2, 3], max_new_tokens=5).ids).all()
    assert out.text == Letters().decode(out.ids[0]) == "".join(pieces)
    assert out.seconds_per_token > 0


def test_several_texts_are_each_continued():
    m = model("llama2")
    named = Model(m.config, m.params, Letters(), "")
    both = generate(named, ["BCD", "EF"], max_new_tokens=4)
    assert both.texts == tuple(generate(named, t, max_new_tokens=4).text for t in ("BCD", "EF"))


def test_a_prompt_fills_a_short_context_to_its_end():
    config = gpt2.Config(vocab=40, width=8, layers=1, heads=2, context=6)
    params = gpt2.module(config).init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    for cache in (None, KVCache(8)):
        out = generate(Model(config, params, None, ""), [1, 2, 3, 4], max_new_tokens=2, cache=cache)
        assert out.ids.shape == (1, 2)


@pytest.mark.parametrize("ids", [np.array([[40]]), jnp.array([[-1]])])
def test_ids_outside_the_vocabulary_are_refused_where_they_are_not_traced(ids):
    with pytest.raises(ValueError, match="expected 0 to below 40"):
        model("llama2").apply(model("llama2").params, ids)


@pytest.mark.parametrize("ids", [[[1, 2]], np.array([1, 2]), jnp.array([[1.0]])])
def test_a_model_takes_rows_of_ids_alone(ids):
    with pytest.raises((TypeError, ValueError), match=r"expected .*integers \(batch, tokens\)"):
        model("llama2").apply(model("llama2").params, ids)


@pytest.mark.parametrize(
    "prompt, options, message",
    [
        ("text", {}, "no tokenizer"),
        ([], {}, "not empty"),
        ([40], {}, "expected 0 to below 40"),
        ([1], {"max_new_tokens": 64}, "no more than 64 together"),
        ([[1], []], {}, "not empty"),
        ([[1], [40]], {}, "expected 0 to below 40"),
        ([[1], [2.5, 3.0]], {}, "the prompt holds float64"),
        (["text", 3], {}, "the prompt holds"),
        ([1], {"max_new_tokens": 2.0}, "max_new_tokens is 2.0, expected an int"),
        ([1], {"temperature": float("nan")}, "temperature is nan"),
        ([1], {"temperature": "hot"}, "temperature is 'hot', expected a number"),
        ([1], {"top_k": 2.5}, "top_k is 2.5, expected an int"),
        ([1], {"seed": None}, "seed is None, expected an int"),
        ([1], {"temperature": -1.0}, "temperature is -1"),
        ([1], {"top_k": 0}, "top_k is 0"),
        ([1], {"top_p": 1.5}, "top_p is 1.5"),
        ([1], {"min_p": 0.0}, "min_p is 0.0"),
        ([1], {"stream": print}, "stream wants a tokenizer"),
        ([1], {"cache": 4}, "cache is 4, expected a KVCache"),
        ([1], {"beams": 4}, "beams is 4, expected a BeamSearch"),
        ([1], {"beams": BeamSearch(2), "temperature": 1.0}, "without sampling"),
        ([1], {"forced": [3]}, "forced is .3., expected None"),
    ],
)
def test_what_cannot_be_done_is_refused(prompt, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        generate(model("llama2"), prompt, **{"max_new_tokens": 2, **options})


def test_an_encoder_and_a_model_without_weights_are_refused():
    encoder = Model(bert.Config(64, 32, 48, 2, 4), {}, None, "")
    with pytest.raises(ValueError, match="encoder"):
        generate(encoder, [1])
    m = model("llama2")
    shapes = jax.eval_shape(lambda: m.params)
    with pytest.raises(ValueError, match="shapes only"):
        generate(Model(m.config, shapes, None, "abstract"), [1], max_new_tokens=2)
