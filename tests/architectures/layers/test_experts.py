"""A mixture of experts equals its formula, token by token and expert by expert."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cheap_jit import jit
from drawn_weights import drawn
from jax.sharding import PartitionSpec as P
from reference_models import member
from safetensors.numpy import save_file

import jaxmem as jm
from jaxmem.architectures.configs.mixture import Mixture
from jaxmem.architectures.decoder import Config, module
from jaxmem.architectures.layers.experts import Experts
from jaxmem.architectures.layers.routing import route

MIXTURE = Mixture(experts=8, per_token=2, ffn=16)
CONFIG = Config(vocab=8, width=24, ffn=8, layers=1, heads=1, kv_heads=1, head_dim=8)
FEW, MANY = 1, 24  # tokens that read their experts one by one, and that are sorted by expert


@functools.cache
def layer(mixture=MIXTURE):
    config = dataclasses.replace(CONFIG, mixture=mixture)
    experts = Experts(config)
    params = experts.init(jax.random.key(0), jnp.zeros((1, 1, 24)))["params"]
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noise = lambda w, key: w + 0.2 * jax.random.normal(key, w.shape)
    params = tree.unflatten(map(noise, leaves, keys))
    return lambda params, x: experts.apply({"params": params}, x), params


def tokens(count):
    return jax.random.normal(jax.random.key(2), (1, count, 24))


def linear(stack, expert, x):
    y = x @ stack["kernel"][expert]
    return y + stack["bias"][expert] if "bias" in stack else y


def formula(params, x, mixture=MIXTURE):
    """Every token by itself."""
    p, out = jax.tree.map(np.asarray, params), np.zeros(x.shape)
    logits = np.asarray(x[0]) @ p["router"]["kernel"] + p["router"].get("bias", 0)
    weights, experts = route(jnp.asarray(logits), mixture, p.get("correction"))
    for t, row in enumerate(np.asarray(x[0])):
        for weight, e in zip(np.asarray(weights)[t], np.asarray(experts)[t]):
            gate, up = linear(p["experts"]["gate"], e, row), linear(p["experts"]["up"], e, row)
            hidden = gate / (1 + np.exp(-gate)) * up
            out[0, t] += weight * linear(p["experts"]["down"], e, hidden)
    return out


@pytest.mark.parametrize("count", [FEW, MANY])
@pytest.mark.parametrize("biases", [False, True])
def test_experts_equal_their_formula(count, biases):
    mixture = dataclasses.replace(MIXTURE, router_bias=biases, expert_bias=biases)
    apply, params = layer(mixture)
    x = tokens(count)
    np.testing.assert_allclose(jit(apply)(params, x), formula(params, x, mixture), atol=1e-5)


@pytest.mark.parametrize("count", [FEW, MANY])
def test_encoded_experts_are_never_decoded_as_a_stack(count):
    apply, params = layer()
    codecs = {r"experts/.*": jm.Int(8, group=8)}
    encoded = jm.encode(params, jm.choose(params, codecs))
    run = jit(jm.lift(apply, on_decode="error"))
    expected = jit(apply)(jm.decode(encoded), tokens(count))
    np.testing.assert_allclose(run(encoded, tokens(count)), expected, atol=2e-2)


def test_statistics_of_an_expert_are_those_of_its_tokens():
    apply, params = layer()
    x = tokens(MANY)
    one_by_one = [(x[:, i : i + 1],) for i in range(MANY)]
    few, many = (
        jm.stats(apply, params, batches)["experts/gate/kernel"] for batches in (one_by_one, [(x,)])
    )
    assert few.count.sum() == MANY * MIXTURE.per_token
    for name in ("second", "mean", "count"):
        np.testing.assert_allclose(getattr(few, name), getattr(many, name), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [FEW, MANY])
@pytest.mark.parametrize("bits", [None, 4])
def test_experts_divided_over_devices_are_the_same(count, bits):
    apply, params = layer()
    codecs = {} if bits is None else {r"experts/.*": jm.Int(bits)}
    params = jm.encode(params, jm.choose(params, codecs))
    where = jm.shardings(params, jm.mesh(expert=4, data=2), {r"experts/.*": P("expert")})
    run = jit(jm.lift(apply, on_decode="error"))
    divided = run(jm.shard(params, where), tokens(count))
    np.testing.assert_allclose(divided, run(params, tokens(count)), atol=1e-5)


def test_each_way_of_routing_equals_its_formula():
    logits = jnp.array([[2.0, 1.0, 0.0, 1.9, -1.0, 0.5]])
    sigmoid, softmax = 1 / (1 + np.exp(-logits[0])), np.exp(logits[0]) / np.exp(logits[0]).sum()
    routed = lambda **options: route(logits, Mixture(6, options.pop("per_token", 2), 8, **options))
    assert routed()[1].tolist() == [[0, 3]]
    np.testing.assert_allclose(routed(scale=2.0)[0][0], 2 * softmax[jnp.array([0, 3])], rtol=1e-5)
    np.testing.assert_allclose(routed(renormalized=True)[0].sum(), 1.0, rtol=1e-6)
    np.testing.assert_allclose(
        routed(scores="sigmoid")[0][0], sigmoid[jnp.array([0, 3])], rtol=1e-5
    )
    limited = dict(groups=3, groups_per_token=1)  # groups (2, 1), (0, 1.9), (-1, 0.5)
    assert routed(**limited)[1].tolist() == [[0, 1]]
    weights, experts = route(
        logits, Mixture(6, 2, 8, correction=True), jnp.array([0, 0, 5.0, 0, 0, 0])
    )
    assert experts.tolist() == [[2, 0]]
    np.testing.assert_allclose(weights[0], softmax[jnp.array([2, 0])], rtol=1e-5)
    weights, experts = routed(scores="sparsemixer", jitter=0.05)  # 2.0 and 1.9 are close
    assert experts.tolist() == [[0, 3]]
    np.testing.assert_allclose(weights[0], [1 / (1 + np.exp(-0.1)), 1.0], rtol=1e-5)


LATENT = dict(kv_rank=8, nope_dim=4, rope_dim=4, value_dim=6)
OTHERS = {
    "every layer": dict(mixture=dict(experts=8, per_token=2, ffn=16, expert_bias=True)),
    "all layers but one": dict(
        mixture=dict(experts=8, per_token=2, ffn=16, shared_ffn=8, dense=(True, False))
    ),
    "with latents": dict(
        mixture=dict(experts=8, per_token=2, ffn=16), latent=LATENT, kv_heads=2, rotary_dim=4
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_layouts_divide_the_experts_of(name):
    config = dataclasses.replace(CONFIG, layers=2, heads=2, **OTHERS[name])
    ids = jax.ShapeDtypeStruct((1, 4), jnp.int32)
    params = jax.eval_shape(module(config).init, jax.random.key(0), ids)["params"]
    mesh = jm.mesh(expert=2, fsdp=2, tensor=2)
    where = jm.shardings(params, mesh, jm.layouts.fsdp_tensor(config, mesh))
    specs = dict(zip(jm.paths(params), (x.spec for x in jax.tree.leaves(where))))
    path = next(path for path in specs if path.endswith("experts/up/kernel"))
    assert specs[path] == P(None, "expert", None, ("tensor", "fsdp"))
    assert sum(spec == P() for spec in specs.values()) < len(specs) / 2


@pytest.mark.parametrize("name", ["qwen3_moe", "deepseek_v2"])
def test_a_checkpoint_with_tensors_for_each_expert_loads(name, tmp_path):
    config, params, file, shapes = member(name)
    tensors = {path: drawn(path, shape) for path, shape in shapes.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(str(file["config"]))
    model = jm.models.load(tmp_path)
    assert model.config == config
    jax.tree.map(np.testing.assert_array_equal, model.params, params)
