"""Every family of decoders computes what transformers computes, at once and token by token."""

import cheap_jit
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from reference_models import MEMBERS, member

from jaxmem.architectures import decoder


@pytest.mark.parametrize("name", MEMBERS)
def test_logits_equal_the_reference_at_once_and_token_by_token(name):
    config, params, file, _ = member(name)
    apply = decoder.module(config).apply

    @cheap_jit.jit
    def both(params, ids):
        def step(carry, token):
            cache, position = carry
            logits, cache = apply({"params": params}, token[:, None], cache, position)
            return (cache, position + 1), logits[:, 0]

        start = config.cache(len(ids), ids.shape[1]), jnp.int32(0)
        _, by_token = jax.lax.scan(step, start, ids.T)
        return apply({"params": params}, ids), by_token.swapaxes(0, 1)

    at_once, by_token = both(params, jnp.asarray(file["ids"], jnp.int32))
    atol = 1e-4 * np.abs(file["logits"]).max()
    np.testing.assert_allclose(at_once, file["logits"], rtol=0, atol=atol)
    np.testing.assert_allclose(by_token, file["logits"], rtol=0, atol=atol)


@pytest.mark.parametrize("name", MEMBERS)
def test_every_tensor_is_read_and_makes_a_parameter(name):
    config, params, _, shapes = member(name)
    maps = decoder.weights(config)
    assert {tensor for x in maps.values() for tensor in x.names} == set(shapes)
    ids = jax.ShapeDtypeStruct((1, 4), jnp.int32)
    init = jax.eval_shape(decoder.module(config).init, jax.random.key(0), ids)["params"]
    expected = {path: x.shape for path, x in flatten_dict(init, sep="/").items()}
    assert expected == {path: x.shape for path, x in maps.items()}
    assert expected == {path: x.shape for path, x in flatten_dict(params, sep="/").items()}
