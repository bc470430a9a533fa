"""BERT computes what transformers computes, and padding changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from reference_models import reference

from jaxmem.architectures import bert


@pytest.fixture(scope="module")
def model():
    return reference("bert", bert)


def test_hidden_states_equal_the_reference(model):
    config, params, file = model
    hidden = jax.jit(bert.module(config).apply)({"params": params}, file["ids"], file["mask"])
    assert np.abs(hidden - file["hidden"])[file["mask"]].max() <= 1e-4


def test_padding_does_not_change_an_embedding(model):
    config, params, file = model
    run = jax.jit(bert.module(config).apply)
    ids, mask = jnp.asarray(file["ids"]), jnp.asarray(file["mask"])
    padded = bert.embed(run({"params": params}, ids, mask), mask)[1:]
    alone = bert.embed(run({"params": params}, ids[1:, :17]), mask[1:, :17])
    assert np.abs(padded - alone).max() <= 1e-6


def test_embeddings_have_unit_length_and_no_tokens_give_zero():
    hidden = jax.random.normal(jax.random.key(0), (2, 5, 8))
    mask = jnp.asarray([[1, 1, 1, 0, 0], [0, 0, 0, 0, 0]])
    lengths = jnp.linalg.norm(bert.embed(hidden, mask), axis=-1)
    np.testing.assert_allclose(lengths, [1.0, 0.0], atol=1e-6)


def test_recipes_name_every_parameter_with_its_shape(model):
    config, _, file = model
    init = jax.eval_shape(bert.module(config).init, jax.random.key(0), file["ids"])["params"]
    shapes = {path: x.shape for path, x in flatten_dict(init, sep="/").items()}
    assert shapes == {path: r.shape for path, r in bert.weights(config).items()}


@pytest.mark.parametrize(
    "change", [{"model_type": "bart"}, {"hidden_act": "elu"}, {"num_attention_heads": 7}]
)
def test_what_is_not_computed_is_refused(change):
    hf = {"model_type": "bert", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48}
    hf |= {"num_hidden_layers": 2, "num_attention_heads": 4}
    assert bert.Config.from_hf(hf).context == 512
    with pytest.raises(ValueError, match=r"expected|does not"):
        bert.Config.from_hf(hf | change)


def test_tokens_past_the_table_of_positions_are_refused_when_traced(model):
    config, params, _ = model
    net, ids = bert.module(config), jax.ShapeDtypeStruct((1, config.context + 1), jnp.int32)
    with pytest.raises(ValueError, match="65 tokens from position 0, in a model of 64 positions"):
        jax.eval_shape(lambda p, i: net.apply({"params": p}, i), params, ids)


@pytest.mark.parametrize("change", [{"is_decoder": True}, {"layer_norm_eps": "x"},
    {"position_embedding_type": "relative_key"}, {"num_hidden_layers": 0}])  # fmt: skip
def test_a_value_that_is_not_computed_is_refused_by_name(change):
    hf = {"model_type": "bert", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48}
    hf |= {"num_hidden_layers": 2, "num_attention_heads": 4, "pooler_fc_size": 768}
    with pytest.raises(ValueError, match=next(iter(change))):
        bert.Config.from_hf(hf | change)
