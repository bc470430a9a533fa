"""What a teacher writes after prompts is a training set."""

import dataclasses

import cheap_jit
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmem as jm
from jaxmem.architectures import llama


def teacher():
    sizes = {"vocab": 6, "width": 8, "ffn": 8, "layers": 1, "heads": 1, "kv_heads": 1}
    config = llama.Config(**sizes, head_dim=8)
    init = cheap_jit.jit(llama.module(config).init)
    params = init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    return jm.models.Model(config, params, None, "random")


def test_each_document_is_a_prompt_and_what_follows_up_to_its_end():
    model = teacher()
    whole = jm.models.generated_documents(
        model, [[1, 2], [3, 4]], max_new_tokens=5, temperature=0.0
    )
    assert whole.lengths.tolist() == [7, 7]
    assert whole[1]["ids"][:2].tolist() == [3, 4]
    assert whole[1]["mask"].astype(int).tolist() == [0, 0, 1, 1, 1, 1, 1]
    end = int(whole[0]["ids"][3])
    stopping = dataclasses.replace(model, config=dataclasses.replace(model.config, eos=(end,)))
    short = jm.models.generated_documents(stopping, [[1, 2]], max_new_tokens=5, temperature=0.0)
    first = whole[0]["ids"].tolist()
    np.testing.assert_array_equal(short[0]["ids"], first[: first.index(end, 2) + 1])


def test_no_prompts_are_refused():
    with pytest.raises(ValueError, match="there are no prompts"):
        jm.models.generated_documents(teacher(), [])


@pytest.mark.parametrize("prompts", [{"a": [1]}, [1.5], "text", [[[1]]]])
def test_what_is_no_list_of_prompts_is_refused(prompts):
    with pytest.raises(TypeError, match=r"prompts is .* expected a list of prompts"):
        jm.models.generated_documents(teacher(), prompts)
