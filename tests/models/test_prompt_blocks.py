"""A prompt that is read a few tokens at a time writes what it writes when it is read at once."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference_models import reference

import jaxmem as jm
from jaxmem.architectures import llama
from jaxmem.codecs.compiled_rows import compiled_rows
from jaxmem.models import Model, next_token_logits
from jaxmem.models.prompt_blocks import MOST_BLOCK_TOKENS, logits_by_blocks


def encoded_model(name):
    config, params, _ = reference(name, llama, "")
    plan = jm.choose(params, {r"embed/embedding|.*kernel": jm.Int(8, group=16)})
    m = Model(dataclasses.replace(config, eos=()), params, None, name)
    uses = jm.uses(m.apply, params, np.zeros((1, 4), np.int32))
    return dataclasses.replace(m, tensors=jax.jit(lambda p: jm.encode(p, plan, uses=uses))(params))


@pytest.mark.parametrize("name", ["llama2", "gemma3"])
def test_a_prompt_read_by_blocks_writes_what_it_writes_read_at_once(name, monkeypatch):
    m = encoded_model(name)
    prompts = [[5, 1, 4], [3, 1, 4, 1], np.arange(37) % m.config.vocab]
    written, before = {}, logits_by_blocks._cache_size()
    for columns in (0, 4):
        monkeypatch.setattr(next_token_logits, "compiled_rows", lambda params: columns)  # noqa: B023
        written[columns] = [jm.models.generate(m, p, max_new_tokens=6).ids[0] for p in prompts]
    np.testing.assert_array_equal(written[4], written[0])
    assert logits_by_blocks._cache_size() == before + 1  # for prompts of every length


def test_a_long_prompt_and_several_are_read_at_once(monkeypatch):
    m = encoded_model("llama2")
    monkeypatch.setattr(next_token_logits, "compiled_rows", lambda params: 4)
    reader = lambda batch, length: next_token_logits.reader(m, batch, length, 1, None)
    in_blocks = lambda *sizes: isinstance(reader(*sizes), next_token_logits.BlockReader)
    asked = [(1, MOST_BLOCK_TOKENS), (1, MOST_BLOCK_TOKENS + 1), (2, 8)]
    assert [in_blocks(*sizes) for sizes in asked] == [True, False, False]
    m = dataclasses.replace(m, config=dataclasses.replace(m.config, context=30))
    assert in_blocks(1, 28) and not in_blocks(1, 29)


def test_blocks_are_for_weights_that_the_library_multiplies():
    m = encoded_model("llama2")
    is_there = jm.native().instruction_set is not None
    assert (compiled_rows(m.params) > 0) == is_there
    assert compiled_rows(jm.decode(m.params)) == 0


def test_the_logits_after_one_token_are_those_of_its_column():
    m, ids = encoded_model("llama2"), jnp.array([[3, 1, 4, 1]])
    alone = jax.jit(lambda p, last: m.apply(p, ids, last=last))(m.params, 2)
    whole = jax.jit(m.apply)(m.params, ids)
    np.testing.assert_allclose(alone, whole[:, 2:3], rtol=1e-4, atol=1e-4)
