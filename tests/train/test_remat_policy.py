"""Policies change what a backward pass keeps, and never what it computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cheap_jit import jit
from jax.ad_checkpoint import checkpoint_name

import jaxmem as jm
from jaxmem.architectures import llama
from jaxmem.train.remat_policy import Remat, remat

POLICIES = [Remat(k) for k in ("none", "full", "dots", "dots_no_batch", "nested")]
POLICIES += [Remat("named", ("out",)), Remat("offload", ("out",))]


def layers(w, x):
    def layer(x, w):
        out = checkpoint_name(jnp.tanh(x @ w), "out")
        return jnp.sin(out) @ w.T + x, out.sum()

    return jax.lax.scan(layer, x, w)


def loss(fn):
    return lambda w, x: fn(w, x)[0].sum() + fn(w, x)[1].sum()


W, X = (jax.random.normal(jax.random.key(i), s) / 4 for i, s in enumerate([(6, 16, 24), (32, 16)]))


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_a_policy_changes_no_value_and_no_gradient(policy):
    gradient = lambda fn: jit(jax.value_and_grad(loss(fn), (0, 1)))(W, X)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    jax.tree.map(close, gradient(remat(layers, policy)), gradient(layers))


def test_policies_trade_flops_for_bytes():
    w, x = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((16, 64, 64), (512, 64)))
    memory = {}
    for kind in ("none", "full", "nested"):
        gradient = jax.grad(
            lambda w, x, kind=kind: remat(layers, Remat(kind))(w, x)[0].sum(), (0, 1)
        )
        memory[kind] = jm.memory(gradient, w, x)
    assert memory["none"].temp > memory["full"].temp > memory["nested"].temp
    assert memory["none"].flops < memory["full"].flops < memory["nested"].flops


def test_a_policy_applies_to_an_encoded_model():
    config = llama.Config(vocab=64, width=32, ffn=48, layers=4, heads=4, kv_heads=2, head_dim=8)
    model = jm.models.Model(config, {}, None, "random")
    ids = jnp.arange(10, dtype=jnp.int32).reshape(1, 10)
    params = jit(llama.module(config).init)(jax.random.key(0), ids)["params"]
    enc = jm.encode(params, jm.choose(params, {".*kernel": jm.Int(8)}))
    want = model.apply(enc, ids)
    got = remat(model.apply, Remat("full"))(enc, ids)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("wrong", [("half", ()), ("named", ()), ("full", ("x",))])
def test_an_unknown_policy_or_wrong_names_are_refused(wrong):
    with pytest.raises(ValueError, match="remat"):
        Remat(*wrong)


def test_a_replayed_model_keeps_its_names_and_lines():
    def layers(w, x):
        with jax.named_scope("mine"):
            return jax.lax.scan(lambda x, w: (jnp.sin(x @ w), None), x, w)[0]

    run = jm.remat(layers, jm.Remat("full"))
    text = jm.memory(run, jnp.ones((4, 8, 8)), jnp.ones((2, 8))).text
    assert "mine/" in text and __file__ in text
