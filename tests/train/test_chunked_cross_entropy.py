"""The chunked loss against the loss of all logits at once."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cheap_jit import jit

from jaxmem.train import next_token_loss


def normal(*shape):
    return jax.random.normal(jax.random.key(0), shape)


def test_the_chunked_loss_and_its_gradient_are_those_of_all_logits():
    x, head, ids = normal(2, 8, 16), normal(16, 24), jnp.arange(16, dtype=jnp.int32).reshape(2, 8)

    def whole(x, head):
        logp = jax.nn.log_softmax(x[:, :-1] @ head)
        return -jnp.take_along_axis(logp, ids[:, 1:, None], -1).mean()

    chunked = lambda x, head: next_token_loss(x, head, ids, chunk=4)
    got, want = (jit(jax.value_and_grad(f, (0, 1)))(x, head) for f in (chunked, whole))
    chex.assert_trees_all_close(got, want, rtol=1e-5, atol=1e-6, strict=True)
    tied = next_token_loss(x, head.T, ids, axis=1, chunk=2)
    np.testing.assert_allclose(tied, want[0], rtol=1e-6)


def test_a_chunk_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="chunk of 3 positions does not divide the 8"):
        next_token_loss(normal(1, 8, 4), normal(4, 6), jnp.zeros((1, 8), jnp.int32), chunk=3)
