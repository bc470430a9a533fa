"""Scales that move from one matrix to the next leave the function, and help what rounds."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmem as jm
from jaxmem.architectures import bert, gpt2, llama
from jaxmem.core.lazy import Lazy, is_lazy
from jaxmem.models import Model, awq, load, smooth
from jaxmem.models.rescaling import channel_links, leaf_at, rescale

LLAMA = dict(vocab=96, width=48, ffn=80, layers=2, heads=4, kv_heads=2, head_dim=8)
CONFIGS = {
    "llama": llama.Config(**LLAMA),
    "tied, with biases": llama.Config(**LLAMA, tied=True, qkv_bias=True),
    "gemma": llama.Config(**LLAMA, tied=True, norm_offset=1.0, post_norms=True, qk_norm=True),
    "gpt2": gpt2.Config(vocab=96, width=48, layers=2, heads=4),
    "bert": bert.Config(vocab=96, width=48, ffn=80, layers=2, heads=4),
}
IDS = jnp.arange(48, dtype=jnp.int32).reshape(4, 12)
each_config = pytest.mark.parametrize("name", CONFIGS)


def random_model(name="llama", lazy=False):
    config = CONFIGS[name]
    shapes = jax.eval_shape(family(config).module(config).init, jax.random.key(0), IDS)["params"]
    rng = np.random.default_rng(0)
    tree = jax.tree.map(lambda s: rng.normal(0.1, 0.3, s.shape).astype(np.float32), shapes)
    if lazy:
        read = lambda w: lambda i: w if i is None else w[i]
        tree = jax.tree.map_with_path(
            lambda path, w: Lazy(w.shape, w.dtype, read(w), path[0].key == "layers"), tree
        )
    return Model(config, tree, None, "a random model")


def family(config):
    return {"llama": llama, "gpt2": gpt2, "bert": bert}[config.family]


def stands_out(model):
    """The same function with a few strong channels after each norm, as real models have."""
    s = np.ones((2, 48), np.float32)
    s[:, :3] = 1 / 30
    return rescale(model, {link: s for link in channel_links(model.config)[::2][:2]})


def output(model):
    return jax.jit(model.apply)(model.params, IDS)


def assert_same(one, other):
    expected, found = output(one), output(other)
    np.testing.assert_allclose(found, expected, atol=2e-5 * float(jnp.abs(expected).max()), rtol=0)


@each_config
def test_any_scale_of_any_joint_leaves_the_function(name):
    model, rng = random_model(name, lazy=True), np.random.default_rng(1)
    scales = {}
    for link in channel_links(model.config):
        kernel = leaf_at(model.tensors, link.readers[0])
        shape = (*kernel.shape[:-2], kernel.shape[-2] // link.repeats)
        scales[link] = np.exp(rng.normal(size=shape)).astype("f4")
    other = rescale(model, scales)
    assert all(map(is_lazy, jax.tree.leaves(other.tensors, is_leaf=is_lazy)))
    for link in scales:
        for path in (*link.readers, *link.writers):
            assert not np.allclose(leaf_at(other.params, path), leaf_at(model.params, path))
    assert_same(model, other)


@each_config
def test_smooth_and_awq_leave_the_function(name):
    model = random_model(name)
    fed = jm.stats(model.apply, model.params, [(IDS,)])
    for other in (smooth(model, fed), awq(model, fed, jm.Int(3, group=16))):
        assert_same(model, other)


def test_smooth_shares_what_is_large_between_inputs_and_weights():
    model = stands_out(random_model())
    fed = jm.stats(model.apply, model.params, [(IDS,)], moments="diag")
    other = smooth(model, fed)
    after = jm.stats(other.apply, other.params, [(IDS,)], moments="diag")
    link = next(j for j in channel_links(model.config) if "mlp_norm" in j.writers[0])
    assert fed[link.readers[0]].absmax[:, :3].mean() > 5
    most = np.max([np.abs(leaf_at(other.params, path)).max(-1) for path in link.readers], 0)
    np.testing.assert_allclose(after[link.readers[0]].absmax, most, rtol=1e-3)


@pytest.mark.slow
def test_activations_in_8_bits_lose_less_when_smoothed():
    model = stands_out(random_model())
    fed = jm.stats(model.apply, model.params, [(IDS,)], moments="diag")
    loss = lambda m: float(jnp.square(rounded(m, jm.Dynamic(jm.Int(8))) - output(m)).mean())
    assert loss(smooth(model, fed)) < loss(model) / 3


def rounded(model, codec):
    plan = jm.choose(model.params, {"layers/.*kernel": codec})
    return jax.jit(model.apply)(jm.encode(model.params, plan), IDS)


@pytest.mark.slow
def test_awq_loses_less_of_each_product_than_rounding_as_it_is():
    model, codec = stands_out(random_model()), jm.Int(3, group=16)
    fed = jm.stats(model.apply, model.params, [(IDS,)])
    other = awq(model, fed, codec)
    after = jm.stats(other.apply, other.params, [(IDS,)])

    def loss(m, stats, path):
        w, gram = jnp.asarray(leaf_at(m.params, path)), stats[path].second
        wrong = codec.encode(w).decode() - w
        return float(((gram @ wrong) * wrong).sum())

    for link in channel_links(model.config):
        both = [sum(loss(*how, p) for p in link.readers) for how in ((model, fed), (other, after))]
        assert both[1] <= 1.001 * both[0]
        assert both[1] < 0.7 * both[0] or "mlp_norm" not in link.writers[0]


def test_shapes_alone_stay_shapes():
    model = load("llama-1b")
    paths = [path for link in channel_links(model.config) for path in link.readers]
    moments = jm.Moments(*[jax.ShapeDtypeStruct((16, 2048), jnp.float32)] * 4)
    other = smooth(model, dict.fromkeys(paths, moments))
    assert jax.tree.map(lambda s: s.shape, other.params) == jax.tree.map(
        lambda s: s.shape, model.params
    )


def test_what_cannot_be_smoothed_is_refused():
    model = random_model()
    fed = jm.stats(model.apply, model.params, [(IDS,)], moments="diag")
    with pytest.raises(ValueError, match="strength of 0 to 1"):
        smooth(model, fed, strength=1.5)
    with pytest.raises(ValueError, match="no matrix"):
        awq(model, {}, jm.Int(4))
    plan = jm.choose(model.params, {"layers/.*kernel": jm.Int(4)})
    encoded = dataclasses.replace(model, tensors=jm.encode(model.params, plan))
    with pytest.raises(ValueError, match="is encoded"):
        smooth(encoded, fed)
