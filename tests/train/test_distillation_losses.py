"""Losses of a student and its teacher against their formulas in numpy, in f64."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cheap_jit import jit
from scipy.special import log_softmax, rel_entr, softmax

import jaxmem as jm
from jaxmem.train import (
    Logits,
    attention_loss,
    chunked,
    distilled_cross_entropy,
    hidden_loss,
    relation_loss,
    teacher_divergence,
)

B, T, D, V = 2, 8, 16, 24
KEYS = jax.random.split(jax.random.key(0), 6)
X, HEAD = jax.random.normal(KEYS[0], (B, T, D)), jax.random.normal(KEYS[1], (D, V))
STATES, TEACHER = jax.random.normal(KEYS[2], (B, T, 32)), jax.random.normal(KEYS[3], (32, V)) / 4
IDS = jax.random.randint(KEYS[4], (B, T), 0, V)
MASK = jnp.arange(B * T).reshape(B, T) % 8 < 6


def kl(p, q):
    return rel_entr(np.float64(p), np.float64(q)).sum(-1)


def divergence_in_f64(kind, temperature, beta):
    p, q = (softmax(np.float64(y) / temperature, -1) for y in (STATES @ TEACHER, X @ HEAD))
    mixed = beta * p + (1 - beta) * q
    values = {"forward": kl(p, q), "reverse": kl(q, p)}
    values["jsd"] = beta * kl(p, mixed) + (1 - beta) * kl(q, mixed)
    return temperature**2 * values[kind]


@pytest.mark.parametrize("kind", ["forward", "reverse", "jsd"])
def test_a_divergence_from_hidden_states_is_its_formula(kind):
    options = {"kind": kind, "temperature": 2.0, "beta": 0.3}
    loss = teacher_divergence(**options)

    def ours(x, states):
        return chunked(loss, (Logits(x, HEAD), Logits(states, TEACHER)), mask=MASK, chunk=2).sum()

    value, (slope, teacher_slope) = jit(jax.value_and_grad(ours, (0, 1)))(X, STATES)
    want = divergence_in_f64(kind, 2.0, 0.3)[np.asarray(MASK)].sum()
    np.testing.assert_allclose(value, want, rtol=1e-5)
    assert not teacher_slope.any()
    whole = lambda x: jnp.where(MASK, loss(x @ HEAD, STATES @ TEACHER), 0.0).sum()
    chex.assert_trees_all_close(slope, jit(jax.grad(whole))(X), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "tile", "encoded"), [("forward", 7, False), ("reverse", 24, False), ("jsd", 8, True)]
)
def test_tiles_of_the_vocabulary_give_what_all_of_it_gives(kind, tile, encoded):
    options = {"kind": kind, "temperature": 2.0, "beta": 0.3}
    table, cap = TEACHER.T, lambda y: 4 * jnp.tanh(y / 4)
    head = jm.Int(8).encode(table, axes=(-1,)) if encoded else table
    dense = head.decode() if encoded else table

    def ours(x, w):
        sides = Logits(x, w, finish=cap), Logits(STATES, head, axis=1)
        return jnp.where(MASK, jm.train.tiled_divergence(*sides, **options, tile=tile), 0.0).sum()

    def plain(x, w):
        values = teacher_divergence(**options)(cap(x @ w), STATES @ dense.T)
        return jnp.where(MASK, values, 0.0).sum()

    got, want = (jit(jax.value_and_grad(f, (0, 1)))(X, HEAD) for f in (ours, plain))
    chex.assert_trees_all_close(got, want, rtol=1e-4, atol=1e-4)


def test_a_frozen_head_of_the_student_is_decoded_tile_by_tile():
    head = jm.Int(4, group=16).encode(HEAD)
    teacher = Logits(STATES, TEACHER)
    ours = lambda x: jm.train.tiled_divergence(Logits(x, head), teacher, tile=16).sum()
    plain = lambda x: teacher_divergence()(x @ head.decode(), STATES @ TEACHER).sum()
    got, want = (jit(jax.value_and_grad(f))(X) for f in (ours, plain))
    chex.assert_trees_all_close(got, want, rtol=1e-4, atol=1e-4)


def test_hard_and_soft_labels_are_shared_by_alpha():
    options = {"alpha": 0.25, "temperature": 2.0, "kind": "reverse"}
    log_p = np.take_along_axis(log_softmax(np.float64(X @ HEAD), -1), IDS[..., None], -1)[..., 0]
    want = -0.75 * log_p + 0.25 * divergence_in_f64("reverse", 2.0, 0.5)
    sides = Logits(X, HEAD), Logits(STATES, TEACHER)
    got = chunked(distilled_cross_entropy(**options), sides, IDS, chunk=4)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    mean = jm.distillation(X @ HEAD, STATES @ TEACHER, IDS, **options)
    np.testing.assert_allclose(mean, want.mean(), rtol=1e-5)


@pytest.mark.parametrize("kind", ["forward", "reverse", "jsd"])
def test_classes_that_neither_can_say_have_no_gradient(kind):
    barred = lambda y: y.at[..., -1].set(-jnp.inf)
    loss = lambda x: teacher_divergence(kind=kind)(barred(x @ HEAD), barred(STATES @ TEACHER)).sum()
    slope = jax.grad(loss)(X)
    assert jnp.isfinite(loss(X)) and jnp.isfinite(slope).all() and slope.any()


def test_hidden_and_attention_losses_are_mean_squares():
    projection = jax.random.normal(KEYS[5], (D, 32))
    want = np.square(np.asarray(X @ projection - STATES))[np.asarray(MASK)].mean()
    got = hidden_loss(X, STATES, projection=projection, mask=MASK)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    scores = jnp.einsum("btd,bsd->bts", X, X)[:, None]
    pairs = MASK[:, None, :, None] & MASK[:, None, None, :]
    student = jnp.where(pairs, scores, -jnp.inf)  # as a model bars its padding
    for mask in (MASK, pairs):
        np.testing.assert_allclose(attention_loss(student, scores + 2, mask=mask), 4.0, rtol=1e-5)
    slope = jax.grad(lambda s: attention_loss(s, scores, mask=MASK))(student)
    assert jnp.isfinite(slope).all()
    assert attention_loss(student, scores, mask=jnp.zeros_like(MASK)) == 0


@pytest.mark.parametrize("causal", [False, True])
def test_relations_of_other_widths_are_compared_head_by_head(causal):
    def relations(x, y):
        x, y = (np.float64(z).reshape(B, T, 4, -1).swapaxes(1, 2) for z in (x, y))
        scores = x @ y.swapaxes(-1, -2) / np.sqrt(x.shape[-1])
        seen = np.asarray(MASK)[:, None, None] & (np.tri(T, dtype=bool) if causal else True)
        return softmax(np.where(seen, scores, -1e30), -1)

    want = kl(relations(STATES, STATES + 1), relations(X, X)).mean(1)[np.asarray(MASK)].mean()
    ours = lambda x, s: relation_loss(x, (s, s + 1), heads=4, mask=MASK, causal=causal)
    value, slopes = jit(jax.value_and_grad(ours, (0, 1)))(X, STATES)
    np.testing.assert_allclose(value, want, rtol=1e-4)
    assert slopes[0].any() and not slopes[1].any()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: teacher_divergence(kind="backward"), "kind is 'backward', expected 'forward'"),
        (lambda: teacher_divergence(kind="jsd", beta=1.0), "beta is 1.0, expected more than 0"),
        (lambda: distilled_cross_entropy(alpha=1.5), "alpha is 1.5, expected 0 to 1"),
        (
            lambda: chunked(teacher_divergence(), (Logits(X, HEAD), Logits(X, HEAD[:, 1:]))),
            "student has logits of 24 classes and the teacher of 23, expected one vocabulary",
        ),
        (lambda: jm.distillation(HEAD, HEAD[:, 1:], jnp.arange(D)), "expected one vocabulary"),
        (
            lambda: jm.train.tiled_divergence(Logits(X, HEAD), Logits(X, HEAD[:, 1:])),
            "the student has logits of 24 classes",
        ),
        (
            lambda: jm.train.tiled_divergence(
                Logits(X, HEAD), Logits(X, jm.Int(8).encode(HEAD)), tile=7
            ),
            "a tile of 7 of 24 ids of an encoded head",
        ),
        (lambda: hidden_loss(X, STATES), "or a projection between their widths"),
        (lambda: hidden_loss(X, STATES, projection=HEAD), r"projection has the shape \(16, 24\)"),
        (
            lambda: attention_loss(jnp.ones((1, 2, 3, 3)), jnp.ones((1, 4, 3, 3))),
            "relation_loss takes other numbers of heads",
        ),
        (lambda: relation_loss(X, STATES, heads=3), "expected .2, 8. and a width that 3 heads"),
        (lambda: relation_loss(X, STATES[:, :4], heads=2), "vectors have the shape .2, 4, 32."),
    ],
)
def test_what_does_not_fit_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()
