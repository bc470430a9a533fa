"""The chunked loss against the loss of all logits at once."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cheap_jit import jit

from jaxmem.train import Logits, next_token_loss, tiled_cross_entropy


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


@pytest.mark.parametrize(("axis", "tile"), [(0, 10), (1, 24)], ids=str)
def test_tiles_of_the_vocabulary_give_the_loss_and_the_gradient_of_chunks(axis, tile):
    x, head = normal(2, 8, 16), normal(16, 24)
    head = head if axis == 0 else head.T
    ids = jnp.arange(16, dtype=jnp.int32).reshape(2, 8)
    options = dict(axis=axis, mask=ids % 3 > 0, smoothing=0.1, z=0.01)
    options["logits"] = lambda products: 3.0 * jnp.tanh(products / 3.0)
    loss = lambda **size: lambda x, head: next_token_loss(x, head, ids, **options, **size)
    got, want = (
        jit(jax.value_and_grad(loss(**size), (0, 1)))(x, head)
        for size in (dict(tile=tile), dict(chunk=8))
    )
    chex.assert_trees_all_close(got, want, rtol=1e-5, atol=1e-6, strict=True)


def test_targets_of_other_tokens_are_refused():
    logits = Logits(normal(1, 8, 4), normal(4, 6))
    with pytest.raises(ValueError, match=r"targets are \(1, 7\), expected \(1, 8\)"):
        tiled_cross_entropy(logits, jnp.zeros((1, 7), jnp.int32))
