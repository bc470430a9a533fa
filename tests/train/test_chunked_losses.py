"""Losses of logits that are never whole: each against its plain formula, with gradients."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cheap_jit import jit

import jaxmem as jm
from jaxmem.train import (
    Logits,
    chunked,
    cross_entropy,
    next_token_loss,
    odds_ratio,
    preference,
    teacher_divergence,
)

B, T, D, V = 2, 8, 16, 24
X, HEAD = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate([(B, T, D), (D, V)]))
IDS = jax.random.randint(jax.random.key(2), (B, T), 0, V)
MASK = jnp.arange(B * T).reshape(B, T) % 3 == 1


def same_values_and_gradients(got, want, *args):
    got, want = (jit(jax.value_and_grad(f, (0, 1)))(*args) for f in (got, want))
    chex.assert_trees_all_close(got, want, rtol=1e-5, atol=1e-6, strict=True)


@pytest.mark.parametrize(
    ("mask", "smoothing", "z"), [(None, 0.1, 1e-2), (MASK, 0.0, 0.0), (MASK, 0.2, 1e-3)]
)
def test_cross_entropy_is_that_of_all_logits(mask, smoothing, z):
    counted = jnp.ones((B, T), bool) if mask is None else mask

    def plain(x, head):
        logits = x @ head
        labels = optax.smooth_labels(jax.nn.one_hot(IDS, V), smoothing)
        values = optax.softmax_cross_entropy(logits, labels)
        values += z * jax.nn.logsumexp(logits, axis=-1) ** 2
        return jnp.where(counted, values, 0.0).sum()

    def ours(x, head):
        loss = cross_entropy(smoothing=smoothing, z=z)
        return chunked(loss, Logits(x, head), IDS, mask=mask, chunk=2).sum()

    same_values_and_gradients(ours, plain, X, HEAD)


def test_masked_ids_are_not_predicted():
    loss = lambda x, head: next_token_loss(x, head, IDS, mask=MASK, chunk=4)
    logp = lambda x, head: jax.nn.log_softmax(x[:, :-1] @ head)
    picked = lambda a: jnp.take_along_axis(a, IDS[:, 1:, None], -1)[..., 0]
    counted = MASK[:, 1:]
    plain = lambda x, head: -picked(logp(x, head)).mean(where=counted)
    same_values_and_gradients(loss, plain, X, HEAD)


def test_chunks_of_masked_tokens_are_not_computed():
    mask = jnp.zeros((1, T), bool).at[0, 5].set(True)
    x = jnp.where(mask[..., None], X[:1], jnp.nan)  # NaN would show
    value, gradient = jax.value_and_grad(
        lambda x: chunked(cross_entropy(), Logits(x, HEAD), IDS[:1], mask=mask, chunk=1).sum()
    )(x)
    assert jnp.isfinite(value) and jnp.isfinite(gradient).all() and (gradient[0, 5] != 0).all()
    cond = str(jax.make_jaxpr(lambda x: chunked(
        cross_entropy(), Logits(x, HEAD), IDS[:1], mask=mask, chunk=1))(x))  # fmt: skip
    assert "cond" in cond


def test_divergence_from_a_teacher_with_an_encoded_head():
    states, head = jax.random.normal(jax.random.key(3), (B, T, 32)), jnp.ones((V, 32))
    teacher_head = jm.Int(8).encode(head * jnp.linspace(0, 1, V)[:, None], axes=(-1,))
    teacher = Logits(states, teacher_head, axis=1, finish=lambda y: y - 1.0)

    def plain(x, head):
        target = (states @ teacher_head.decode().T - 1.0) / 2.0
        return 4.0 * jm.train.kl_divergence(target, x @ head / 2.0).sum()

    def ours(x, head):
        return chunked(teacher_divergence(temperature=2.0), (Logits(x, head), teacher)).sum()

    same_values_and_gradients(ours, plain, X, HEAD)
    slope = jax.grad(lambda states: chunked(
        teacher_divergence(), (Logits(X, HEAD), Logits(states, teacher_head, axis=1))
    ).sum())(states)  # fmt: skip
    assert not slope.any()


def test_preference_and_odds_ratio_are_their_formulas():
    chosen, rejected = jnp.array([-4.0, -7.0]), jnp.array([-6.0, -5.0])
    start = jnp.array([-5.0, -5.0]), jnp.array([-5.5, -5.0])
    ratio = np.exp(chosen - start[0]) / np.exp(rejected - start[1])
    want = -np.log(ratio**0.3 / (1 + ratio**0.3))
    got = preference(chosen, rejected, reference=start, beta=0.3)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    flipped = preference(chosen, rejected, reference=start, beta=0.3, smoothing=0.1)
    np.testing.assert_allclose(flipped, 0.9 * want - 0.1 * np.log(1 / (1 + ratio**0.3)), rtol=1e-5)
    p, q = (np.exp(x / 10) for x in (chosen, rejected))
    odds = (p / (1 - p)) / (q / (1 - q))
    want = np.log1p(1 / odds)
    np.testing.assert_allclose(odds_ratio(chosen / 10, rejected / 10), want, rtol=1e-5)
    slope = jax.grad(lambda x: odds_ratio(x, rejected).sum())(jnp.zeros(2))
    assert jnp.isfinite(slope).all()


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (lambda: cross_entropy(smoothing=2.0), ValueError, "smoothing is 2.0, expected 0 to 1"),
        (lambda: cross_entropy(z=-1.0), ValueError, "z is -1.0, expected at least 0"),
        (lambda: teacher_divergence(temperature=0.0), ValueError, "temperature is 0.0"),
        (lambda: Logits(X, HEAD.T), ValueError, "head has shape .24, 16., expected 16 on its axis"),
        (lambda: Logits(X[0], HEAD), TypeError, "takes hidden states"),
        (
            lambda: chunked(cross_entropy(), Logits(X, HEAD), IDS[:, :4]),
            ValueError,
            "expected .2, 8. of all",
        ),
        (
            lambda: preference(X[0, 0], X[0, 0], reference=(X[0, 0], X[0, 0]), beta=0.0),
            ValueError,
            "beta is 0.0, expected more than 0",
        ),
    ],
)
def test_wrong_options_are_refused(wrong, error, message):
    with pytest.raises(error, match=message):
        wrong()
