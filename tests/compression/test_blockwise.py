"""Calibration block by block, and scales tuned on the whole model, on tiny random models."""

import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxmem as jm
from jaxmem.architectures import gpt2, llama
from jaxmem.core.lazy import Lazy
from jaxmem.models import Model
from jaxmem.models.model import family
from jaxmem.train.learnable_int import LearnedArray

IDS = np.asarray(jax.random.randint(jax.random.key(0), (4, 2, 32), 0, 64))
PLAN = {"layers/.*": jm.GPTQ(jm.Int(3, group=16)), "head": jm.GPTQ(jm.Int(4))}


def apply(params, ids):
    def layer(x, w):
        return x + jnp.tanh(x @ w["up"]) @ w["down"], None

    return lax.scan(layer, params["embed"][ids], params["layers"])[0] @ params["head"]


def normal(*shape):
    return jax.random.normal(jax.random.key(sum(shape)), shape) / shape[-2] ** 0.5


LAYERS = {"up": normal(3, 32, 48), "down": normal(3, 48, 32)}
PARAMS = {"embed": normal(64, 32) * 8, "layers": LAYERS, "head": normal(32, 64) * 2}
MODEL = types.SimpleNamespace(tensors=PARAMS, params=PARAMS, apply=apply)
BATCHES = [(ids,) for ids in IDS]


def divergence(enc):
    dense = jax.nn.log_softmax(MODEL.apply(MODEL.params, IDS[0]))
    ours = jax.nn.log_softmax(MODEL.apply(jm.decode(enc), IDS[0]))
    return float((jnp.exp(dense) * (dense - ours)).sum(-1).mean())


@pytest.mark.slow
def test_the_first_block_is_what_one_pass_makes_and_the_tree_is_alike():
    plan = jm.choose(MODEL.params, PLAN)
    stats = jm.stats(MODEL.apply, MODEL.params, BATCHES)
    uses = jm.uses(MODEL.apply, MODEL.params, IDS[0])
    once = jm.encode(MODEL.params, plan, uses=uses, stats=stats)
    done = []
    by_block = jm.encode_by_block(MODEL, plan, BATCHES, progress=lambda i, n: done.append((i, n)))
    assert done == [(1, 3), (2, 3), (3, 3)]
    assert jax.tree.structure(by_block) == jax.tree.structure(once)
    layer = lambda tree, i: [np.asarray(a[i]) for a in jax.tree.leaves(tree["layers"])]
    for a, b in zip(layer(by_block, 0), layer(once, 0)):
        assert (a == b).mean() > 0.99  # the moments are summed in another order
    assert any((a != b).any() for a, b in zip(layer(by_block, 2), layer(once, 2)))  # other inputs
    assert divergence(by_block) < 1.5 * divergence(once)


def test_lazy_weights_are_read_a_layer_at_a_time():
    read = []

    def lazy(path, w):
        take = lambda i: read.append(path) or np.asarray(w if i is None else w[i])
        return Lazy(w.shape, w.dtype, take, stacked=path.startswith("layers"))

    leaves, tree = jax.tree.flatten(MODEL.params)
    tensors = tree.unflatten([lazy(p, w) for p, w in zip(jm.paths(MODEL.params), leaves)])
    plan = jm.choose(MODEL.params, PLAN)
    found = jm.encode_by_block(
        types.SimpleNamespace(tensors=tensors, apply=apply), plan, BATCHES[:1]
    )
    want = jm.encode_by_block(MODEL, plan, BATCHES[:1])
    chex.assert_trees_all_equal(found, want, strict=True)
    assert max(map(read.count, read)) <= 3  # each layer once


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        llama.Config(vocab=64, width=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8),
        gpt2.Config(vocab=64, width=32, ffn=64, layers=2, heads=4, context=32),
    ],
    ids=lambda config: config.family,
)
def test_our_models_are_cut_too(config):
    net = family(config).module(config)
    params = jax.jit(net.init)(jax.random.key(1), IDS[0])["params"]
    plan = jm.choose(params, {"layers/.*kernel": jm.Int(4)})
    enc = jm.encode_by_block(Model(config, params, None, "random"), plan, BATCHES[:1])
    want = jm.encode(params, plan)
    chex.assert_trees_all_equal(enc, want, strict=True)


@pytest.mark.parametrize(
    ("fn", "batches", "passes", "message"),
    [
        (MODEL.apply, [], 0, "at least one batch"),
        (MODEL.apply, BATCHES, -1, "passes is -1"),
        (lambda p, ids: p["embed"][ids], BATCHES, 0, "runs no scan"),
    ],
)
def test_what_has_no_blocks_is_told(fn, batches, passes, message):
    other = types.SimpleNamespace(tensors=PARAMS, apply=fn)
    with pytest.raises(ValueError, match=message):
        jm.encode_by_block(other, {}, batches, passes=passes)


def test_what_has_no_stats_in_the_end_is_told_before_the_first_block():
    done = []
    with pytest.raises(ValueError, match=r"^embed: GPTQ.* wants stats of a product"):
        plan = {"embed": jm.GPTQ(jm.Int(4))}
        jm.encode_by_block(MODEL, plan, BATCHES[:1], progress=lambda *at: done.append(at))
    assert not done
    with pytest.raises(TypeError, match="a model with tensors and apply, got dict"):
        jm.encode_by_block(PARAMS, plan, BATCHES[:1])


def test_blocks_that_learn_lose_less_in_the_same_bytes():
    plan = jm.choose(MODEL.params, {"layers/.*": jm.GPTQ(jm.Int(2, group=16, symmetric=False))})
    plain = jm.encode_by_block(MODEL, plan, BATCHES)
    learned = jm.encode_by_block(MODEL, plan, BATCHES, passes=20)
    assert jax.tree.structure(learned) == jax.tree.structure(plain)
    assert jm.nbytes(learned) == jm.nbytes(plain)
    assert divergence(learned) < 0.9 * divergence(plain)
    wild = jm.encode_by_block(MODEL, plan, BATCHES, passes=1, learning_rate=1e3)
    first = lambda tree: jax.tree.map(lambda a: a[0], tree["layers"])
    chex.assert_trees_all_equal(first(wild), first(plain), strict=True)  # no nearer: not kept


def test_passes_in_which_nothing_learns_are_refused():
    rules = {"layers/.*": jm.DoubleQuant(jm.Int(3, group=8), jm.Int(8)), "head": jm.Int(4)}
    with pytest.raises(ValueError, match="leaves an Int to learn: DoubleQuant"):
        jm.encode_by_block(MODEL, jm.choose(MODEL.params, rules), BATCHES, passes=1)


@pytest.mark.slow
def test_an_int_inside_another_leaf_learns_too():
    int2 = jm.Int(2, group=16)
    rules = {"layers/up": jm.Smooth(jm.Dynamic(int2)), "layers/down": jm.Sum((int2, jm.LowRank(2)))}
    plan = jm.choose(MODEL.params, rules) | {"layers[0]/up": jm.Codebook("nf4")}
    stats = jm.stats(MODEL.apply, MODEL.params, BATCHES, moments="diag")
    enc = jm.encode(MODEL.params, plan, stats=stats)
    how = dict(loss=jm.divergence, learning_rate=0.05)
    learned = jm.learn_rounding(MODEL.apply, PARAMS, enc, BATCHES * 5, **how)
    assert jax.tree.structure(learned) == jax.tree.structure(enc)
    assert jm.nbytes(learned) == jm.nbytes(enc)
    assert divergence(learned) < 0.9 * divergence(enc)
    up, down = ([t["layers"][name] for t in (enc, learned)] for name in ("up", "down"))
    codes = lambda pair, of: any((a != b).any() for a, b in zip(*(of(x).codes for x in pair)))
    assert codes(up, lambda x: x.parts[1].inner.inner) and codes(down, lambda x: x.parts[0])


@pytest.mark.parametrize(
    "codec", [jm.Int(3), jm.Int(2, group=10, symmetric=False), jm.Int(8)], ids=str
)
@pytest.mark.parametrize("axes", [(-2,), (-1,), (1, 3)], ids=str)
def test_a_leaf_that_learned_nothing_is_the_leaf_it_was(codec, axes):
    w = jax.random.normal(jax.random.key(0), (2, 6, 5, 24))
    leaf = codec.encode(w, axes)
    learning_one = LearnedArray.of(leaf, w)
    np.testing.assert_allclose(learning_one.decode(), leaf.decode(), atol=1e-6)
    chex.assert_trees_all_equal(learning_one.encoded(), leaf, strict=True)


def test_a_model_learns_from_the_logits_it_should_give():
    enc = jm.encode(MODEL.params, jm.choose(MODEL.params, {"layers/.*": jm.Int(2, group=16)}))
    learned = jm.learn_rounding(MODEL.apply, PARAMS, enc, BATCHES * 10, loss=jm.divergence)
    assert divergence(learned) < 0.8 * divergence(enc)
    assert any((a != b).any() for a, b in zip(*(t["layers"]["up"].codes for t in (enc, learned))))


@pytest.mark.parametrize(
    ("enc", "batches", "message"),
    [(MODEL.params, BATCHES, "no leaf of Int"), (MODEL.params, [], "at least one batch")],
)
def test_nothing_to_learn_is_told(enc, batches, message):
    with pytest.raises(ValueError, match=message):
        jm.learn_rounding(MODEL.apply, MODEL.params, enc, batches)


def test_a_loss_that_is_not_finite_is_told():
    enc = jm.encode(MODEL.params, jm.choose(MODEL.params, {"layers/.*": jm.Int(2)}))
    loss = lambda target, found: jnp.float32(jnp.nan) * found.sum()
    with pytest.raises(ValueError, match="loss of step 0 is nan"):
        jm.learn_rounding(MODEL.apply, MODEL.params, enc, BATCHES, loss=loss)


@pytest.mark.parametrize("codec", [jm.Int(2, group=16), jm.Codebook("nf4"), jm.LowRank(8)], ids=str)
def test_tuned_floats_bring_the_model_nearer_in_the_same_bytes(codec):
    enc = jm.encode(MODEL.params, jm.choose(MODEL.params, {"layers/.*": codec}))
    tuned = jm.tune(MODEL.apply, MODEL.params, enc, BATCHES * 8, learning_rate=5e-3)
    assert jax.tree.structure(tuned) == jax.tree.structure(enc)
    kinds = lambda tree: [(a.shape, a.dtype) for a in jax.tree.leaves(tree)]
    assert kinds(tuned) == kinds(enc)
    assert divergence(tuned) < 0.95 * divergence(enc)
    ints = lambda tree: [
        a for a in jax.tree.leaves(tree) if not jnp.issubdtype(a.dtype, jnp.floating)
    ]
    chex.assert_trees_all_equal(ints(tuned), ints(enc), strict=True)


@pytest.mark.parametrize(
    ("enc", "batches", "message"),
    [(MODEL.params, BATCHES, "no encoded leaf"), (MODEL.params, [], "at least one batch")],
)
def test_nothing_to_tune_is_told(enc, batches, message):
    with pytest.raises(ValueError, match=message):
        jm.tune(MODEL.apply, MODEL.params, enc, batches)
