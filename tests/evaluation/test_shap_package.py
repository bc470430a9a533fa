"""Shapley values are those of the package `shap`, of any game and of a model's words."""

import warnings

import numpy as np
import pytest

with warnings.catch_warnings():  # its colours are made by functions that matplotlib deprecates
    warnings.simplefilter("ignore")
    shap = pytest.importorskip("shap", reason="wants shap, which .ci/run installs")

import cheap_jit
import jax
import jax.numpy as jnp

import jaxmem as jm
from jaxmem.architectures import llama
from jaxmem.evaluation import kernel_shap

SIZES = {"width": 16, "ffn": 16, "layers": 1, "heads": 1, "kv_heads": 1, "head_dim": 16}


def by_package(game, n, samples):
    """What `shap` says of the players (n,) of a game; it asks for coalitions of floats."""
    value = lambda chosen: np.asarray(game(np.asarray(chosen) > 0.5), np.float64)
    explainer = shap.KernelExplainer(value, np.zeros((1, n)))
    return explainer.shap_values(np.ones((1, n)), nsamples=samples, l1_reg=False, silent=True)[0]


@pytest.mark.parametrize("n", [2, 5, 9])
def test_all_coalitions_of_a_game_give_what_the_package_gives(n):
    table = np.random.default_rng(n).normal(size=2**n)
    game = lambda chosen: table[chosen @ (1 << np.arange(n))]
    want = by_package(game, n, 2**n)
    np.testing.assert_allclose(kernel_shap(game, n, samples=2**n), want, atol=1e-9)


@pytest.mark.parametrize("codec", [None, jm.Int(4)])
def test_the_vectors_of_a_model_are_worth_what_the_package_says(codec):
    config, ids = llama.Config(vocab=32, context=8, **SIZES), jnp.arange(1, 7)[None]
    params = cheap_jit.jit(llama.module(config).init)(jax.random.key(0), ids)["params"]
    if codec is not None:
        params = jm.encode(params, jm.choose(params, {".*/kernel": codec}))
    model = jm.models.Model(config, params, None, "random")
    apply = cheap_jit.jit(model.apply)
    asked = lambda chosen: jnp.where(chosen, ids, 0)  # a word that is left out is word 0
    game = lambda chosen: np.asarray(apply(params, asked(chosen)))[:, -1, 3]
    want, found = by_package(game, 6, 62), kernel_shap(game, 6, samples=62)
    np.testing.assert_allclose(found, want, atol=1e-5)
    assert np.ptp(found) > 0
