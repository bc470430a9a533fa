"""Rotation: another basis, the same function."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmem.architectures import bert, gpt2
from jaxmem.architectures import llama as family
from jaxmem.core.hadamard import hadamard
from jaxmem.core.lazy import Lazy, is_lazy
from jaxmem.models import Model, load, rotate, rotate_heads
from jaxmem.models.rotation import orthogonal

SIZES = family.Config(vocab=96, width=48, ffn=80, layers=2, heads=4, kv_heads=2, head_dim=16)
IDS = jnp.arange(12, dtype=jnp.int32).reshape(2, 6)


def random_model(lazy=False, config=SIZES, **changes):
    config = dataclasses.replace(config, **changes)
    module = {"llama": family, "gpt2": gpt2, "bert": bert}[config.family].module
    shapes = jax.eval_shape(module(config).init, jax.random.key(0), IDS)["params"]
    rng = np.random.default_rng(0)
    tree = jax.tree.map(lambda s: rng.normal(0.5, 0.3, s.shape).astype(np.float32), shapes)
    if lazy:
        tree = jax.tree.map_with_path(as_lazy, tree)
    return Model(config, tree, None, "a random model")


def as_lazy(path, w):
    read = lambda i: w if i is None else w[i]
    return Lazy(w.shape, w.dtype, read, stacked=path[0].key == "layers")


@pytest.mark.parametrize(
    ("lazy", "changes"),
    [
        (True, {"tied": True}),
        (False, {"tied": False}),
        (True, {"qkv_bias": True, "norm_offset": 1.0}),
    ],
)
def test_a_rotated_model_is_the_same_function(lazy, changes):
    model = random_model(lazy, **changes)
    turned = rotate(model)
    assert_same(model, turned)


def assert_same(model, turned):
    expected, found = (jax.jit(m.apply)(m.params, IDS) for m in (model, turned))
    scale = float(jnp.abs(expected).max())
    np.testing.assert_allclose(found, expected, atol=1e-5 * scale, rtol=0)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_hadamard_basis_is_another_choice(seed):
    model = random_model(tied=True)
    turned = rotate(model, basis="hadamard", seed=seed)
    assert_same(model, turned)
    embed, was = turned.params["embed"]["embedding"], model.params["embed"]["embedding"]
    ratio = np.linalg.lstsq(np.asarray(was), np.asarray(embed), rcond=None)[0]
    np.testing.assert_allclose(np.abs(ratio), 48**-0.5, atol=1e-4)


HEADS = {
    "llama": SIZES,
    "with biases": dataclasses.replace(SIZES, qkv_bias=True),
    "gemma": dataclasses.replace(SIZES, tied=True, norm_offset=1.0, post_norms=True),
    "gpt2": gpt2.Config(vocab=96, width=48, layers=2, heads=4),
    "bert": bert.Config(vocab=96, width=48, ffn=80, layers=2, heads=4),
}


@pytest.mark.parametrize("basis", ["random", "hadamard"])
@pytest.mark.parametrize("name", HEADS)
def test_heads_are_turned_in_the_same_function(name, basis):
    model = random_model(lazy=True, config=HEADS[name])
    turned = rotate_heads(model, basis=basis)
    assert all(map(is_lazy, jax.tree.leaves(turned.tensors, is_leaf=is_lazy)))
    assert_same(model, turned)
    before, after = (m.params["layers"]["attn"]["out"]["kernel"] for m in (model, turned))
    assert float(jnp.abs(before - after).max()) > 0.1
    if name == "gpt2":
        qk = [m.params["layers"]["attn"]["qkv"]["kernel"][..., :96] for m in (model, turned)]
        np.testing.assert_array_equal(*qk)


def test_a_head_that_stands_out_is_spread():
    model = random_model()
    kernel = model.tensors["layers"]["attn"]["v"]["kernel"]
    kernel[..., 5] *= 100
    largest = lambda m: float(jnp.abs(m.params["layers"]["attn"]["v"]["kernel"]).max())
    assert largest(rotate_heads(model)) < largest(model) / 3


@pytest.mark.parametrize("n", [1, 2, 4, 12, 20, 28, 36, 48, 64, 76, 108, 576, 1536, 2048])
def test_a_hadamard_matrix_is_orthogonal_and_level(n):
    h = hadamard(n).astype("f8")
    np.testing.assert_allclose(h @ h.T, np.eye(n), atol=1e-6)
    np.testing.assert_allclose(np.abs(h), n**-0.5, rtol=1e-6)


@pytest.mark.parametrize("n", [0, 3, 6, 7, 92])
def test_an_order_without_a_matrix_is_refused(n):
    with pytest.raises(ValueError, match=f"order {n} is known"):
        hadamard(n)
    with pytest.raises(ValueError, match="a basis is"):
        rotate(random_model(), basis="fourier")


def test_gains_become_ones_and_every_matrix_of_the_stream_changes():
    model = random_model(tied=True)
    turned = rotate(model)
    assert not turned.config.tied
    for norm in (turned.params["final_norm"], turned.params["layers"]["mlp_norm"]):
        assert (norm["scale"] == 1).all()
    for part, name in [("attn", "q"), ("attn", "out"), ("mlp", "up"), ("mlp", "down")]:
        before, after = (m.params["layers"][part][name]["kernel"] for m in (model, turned))
        assert float(jnp.abs(before - after).max()) > 0.1


def test_lazy_tensors_stay_lazy_and_the_model_is_left_alone():
    model = random_model(lazy=True, tied=True)
    before = jax.tree.map(id, model.tensors, is_leaf=is_lazy)
    turned = rotate(model)
    assert all(map(is_lazy, jax.tree.leaves(turned.tensors, is_leaf=is_lazy)))
    assert before == jax.tree.map(id, model.tensors, is_leaf=is_lazy)


def test_the_same_seed_gives_the_same_bytes_and_another_does_not():
    model = random_model(tied=True)
    one, same, other = (rotate(model, seed=s).params["head"]["kernel"] for s in (0, 0, 1))
    assert (one == same).all()
    assert not jnp.allclose(one, other)


def test_shapes_alone_can_be_rotated():
    turned = rotate(load("llama-1b"))
    assert turned.params["head"]["kernel"].shape == (2048, 128_256)
    assert jax.eval_shape(turned.apply, turned.params, IDS).shape == (2, 6, 128_256)


def test_the_matrix_is_orthogonal_to_the_last_digits():
    q = orthogonal(64, 3)
    np.testing.assert_allclose(q @ q.T, np.eye(64), atol=1e-14)


def test_norms_that_a_rotation_does_not_pass_are_refused():
    with pytest.raises(ValueError, match="cannot be rotated: it sets post_norms = True"):
        rotate(random_model(post_norms=True))


@pytest.mark.slow
def test_smollm2_is_the_same_function_rotated():
    model = load("smollm2-135m")
    turned = rotate(model)
    text = (
        "The lighthouse keeper wrote to his sister every winter, and she answered in spring. " * 6
    )
    ids = jnp.array([model.tokenizer.encode(text).ids], jnp.int32)
    dense, other = (jax.jit(m.apply)(m.params, ids) for m in (model, turned))
    assert float(jnp.abs(dense - other).max()) < 1e-3
    losses = [
        -jnp.take_along_axis(jax.nn.log_softmax(y[0, :-1]), ids[0, 1:, None], 1).mean()
        for y in (dense, other)
    ]
    assert float(jnp.abs(losses[0] - losses[1])) < 1e-5
