"""encode of lazy params: the same leaves as of dense ones, and less memory on the way."""

import json

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmem as jm
from jaxmem.compression import encoding
from jaxmem.core.lazy import Lazy

CODECS = [
    jm.Int(8),
    jm.Int(5, group=32, symmetric=False),
    jm.Cast("bfloat16"),
    jm.LowRank(4),
    jm.Chain((jm.LowRank(4), jm.Int(8))),
]


def lazily(w, stacked):
    read = lambda i: w if i is None else w[i]
    return Lazy(w.shape, np.dtype("float32"), read, stacked)


@pytest.mark.parametrize("codec", CODECS, ids=str)
@pytest.mark.parametrize(
    ("shape", "axes"), [((61, 40), (-1,)), ((40, 61), (-2,)), ((3, 40, 24), (-2,))]
)
def test_a_lazy_weight_encodes_as_a_dense_one(codec, shape, axes, monkeypatch):
    monkeypatch.setattr(encoding, "DENSE_WEIGHTS", 16 * 40)  # rows at a time, the last block short
    w = np.random.default_rng(0).standard_normal(shape, np.float32)
    uses = {"w": [jm.Use("dot_general", axes, (1,), "float32", 0)]}
    encode = lambda leaf: jm.encode({"w": leaf}, {"w": codec}, uses=uses)
    found = encode(lazily(w, len(shape) == 3))
    # A stack is compared with its layers, one at a time: on some CPUs a product of many matrices
    # rounds otherwise than a product of one.
    layers = np.split(w, len(w)) if len(shape) == 3 else [w]
    expected = [encode(jnp.asarray(layer)) for layer in layers]
    expected = jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *expected)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("at", [(0, 0), (60, 39)])
def test_what_is_not_finite_is_found_in_any_block(at, monkeypatch):
    monkeypatch.setattr(encoding, "DENSE_WEIGHTS", 16 * 40)
    w = np.zeros((61, 40), np.float32)
    w[at] = np.inf
    with pytest.raises(ValueError, match=r"^w: the weight holds NaN or infinity"):
        jm.encode({"w": lazily(w, stacked=False)}, {"w": jm.Int(8)})


@pytest.mark.parametrize("shape", [(0, 8), (8, 0)])
def test_a_lazy_weight_may_be_empty(shape):
    codec = jm.Int(4)
    found = jm.encode({"w": lazily(np.zeros(shape, np.float32), False)}, {"w": codec})["w"]
    expected = codec.encode(jnp.zeros(shape))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


KINDS = [
    jm.Int(4),
    jm.Codebook("nf4"),
    jm.Planes(),
    jm.GPTQ(jm.Int(4)),
    jm.QERA(jm.Int(3), 1),
    jm.Search(jm.Int(3)),
    jm.KMeans(2),
    jm.LowRank(1),
    jm.Fake(jm.Int(4)),
]
each_kind = pytest.mark.parametrize("codec", KINDS, ids=lambda c: type(c).__name__)


def moments(k, value=1.0):
    return jm.Moments(jnp.full((k, k), value), jnp.zeros(k), jnp.zeros(k), jnp.float32(1))


@each_kind
def test_bad_input_is_refused_by_path_in_one_line(codec):
    def refused(w, fed, error, words):
        with pytest.raises(error, match=rf"^mlp/w: .*{words}[^\n]*$"):
            jm.encode({"mlp": {"w": w}}, {"mlp/w": codec}, stats={"mlp/w": fed})

    w = jnp.ones((8, 4))
    refused(w, moments(8, jnp.nan), ValueError, "stats hold NaN")
    refused(w, moments(5), ValueError, "vectors of 5, and the weight sums over 8")
    stacked = jax.tree.map(lambda a: a[None], moments(8))
    refused(w, stacked, ValueError, r"stack \(1,\), and the weight of \(\)")
    refused(w.astype(jnp.int32), moments(8), TypeError, "int32, expected floats")
    refused(w[0], None, ValueError, "a vector of shape .4,. takes only Keep or Cast")
    if not isinstance(codec, jm.Fake):  # it holds the weight
        refused(w * 1e30, moments(8), ValueError, "too large for float")
    refused(w.at[1, 1].set(jnp.inf), moments(8), ValueError, "NaN or infinity")


@pytest.mark.parametrize("codec", [4, "int4", jm.GPTQ], ids=str)
def test_what_is_no_codec_is_refused_by_path(codec):
    with pytest.raises(TypeError, match=r"^w: .* is no codec, expected one such as Int\(4\)$"):
        jm.encode({"w": jnp.ones((8, 4))}, {"w": codec})


def test_the_weight_may_be_traced_where_the_stats_are_not():
    fed, w = {"w": moments(8)}, {"w": jax.ShapeDtypeStruct((8, 4), jnp.float32)}
    make = lambda w: jm.encode(w, {"w": jm.GPTQ(jm.Int(4))}, stats=fed)
    assert jax.eval_shape(make, w) == make(w)


@each_kind
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_singular_gram_matrix_and_zero_columns_give_finite_leaves(codec, value):
    w = jnp.zeros((8, 4)).at[:, 0].set(1.0)
    leaf = jm.encode({"w": w}, {"w": codec}, stats={"w": moments(8, value)})["w"]
    assert jnp.isfinite(leaf.decode()).all()


class Attention(nn.Module):
    @nn.compact
    def __call__(self, ids):
        x = nn.Embed(32, 16, name="table")(ids)
        return nn.MultiHeadDotProductAttention(num_heads=4, name="attn")(x)


def test_a_plan_carries_the_axes_that_it_was_made_for():
    fn, x = (lambda p, x: jnp.einsum("bk,nhk->bnh", x, p["w"])), jnp.ones((2, 32))
    params = {"w": jnp.asarray(np.random.default_rng(0).standard_normal((16, 4, 32)), "float32")}
    uses = jm.uses(fn, params, x)
    plans = [
        jm.budget(params, nbytes=2_200, candidates=[jm.Int(8)], uses=uses),
        jm.choose(params, {".*": jm.Int(8)}, uses=uses),
    ]
    for plan in [*plans, jm.Plan.from_json(plans[0].to_json()), plans[1] | {}]:
        assert plan.axes == {"w": (-1,)}
        leaf = jm.encode(params, plan)["w"]
        assert leaf.fold.summed == (32,) and jm.nbytes(leaf) <= 2_200
        jm.lift(fn, on_decode="error")({"w": leaf}, x)
    given = {"w": [jm.Use("dot_general", (-3,), (1,), "float32", 0)]}
    assert jm.encode(params, plans[0], uses=given)["w"].fold.summed == (16,)


def test_the_json_of_a_plan_without_axes_is_as_it_was():
    data = {"axes": {"Int": {"bits": 4, "group": None, "symmetric": True}}, "codecs": None}
    plan = jm.Plan.from_json(json.dumps(data))
    assert plan == {"axes": jm.Int(4), "codecs": None} and not plan.axes
    assert plan.to_json() == json.dumps(data, indent=1)


def test_a_model_with_tables_and_attention_is_encoded_as_its_uses_say_without_them():
    model, ids = Attention(), jnp.zeros((1, 3), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), ids)
    uses = jm.uses(model.apply, params, ids)
    plan = jm.choose(params, {".*(kernel|embedding)": jm.Int(8)})
    with_uses, without = jm.encode(params, plan, uses=uses), jm.encode(params, plan)
    assert jax.tree.structure(without) == jax.tree.structure(with_uses)
    smaller = jm.budget(params, nbytes=jm.nbytes(without), candidates=[jm.Int(8)])
    assert jm.nbytes(jm.encode(params, smaller)) <= jm.nbytes(without)


def test_a_stack_of_kernels_with_biases_is_summed_over_its_second_last_axis():
    params = {"kernel": jnp.ones((4, 16, 8)), "bias": jnp.ones((4, 8))}
    assert jm.encode(params, {"kernel": jm.Int(8)})["kernel"].fold.summed == (16,)


def test_a_traced_function_may_close_over_the_weights_that_it_encodes():
    params, plan = {"w": jnp.ones((16, 8))}, {"w": jm.Int(8)}
    make = lambda: jm.encode(params, plan)
    assert jm.nbytes(jax.eval_shape(make)) == jm.nbytes(make())
    apply = lambda x: jm.lift(lambda p, x: x @ p["w"])(make(), x)
    assert jax.eval_shape(apply, jnp.ones((2, 16))).shape == (2, 8)
    wrong = {"w": jnp.full((16, 8), jnp.nan)}
    with pytest.raises(ValueError, match="w: the weight holds NaN or infinity"):
        jax.eval_shape(lambda: jm.encode(wrong, plan))


@pytest.mark.parametrize("codec", [jm.Int(3, group=16, symmetric=False), jm.Codebook("nf4")])
def test_a_small_weight_has_the_bits_that_an_optimized_program_gives(codec, monkeypatch):
    w = jax.random.normal(jax.random.key(0), (48, 24))
    quick = jm.encode({"w": w}, {"w": codec})
    jax.config.update("jax_disable_most_optimizations", False)
    monkeypatch.setattr(encoding, "FEW_WEIGHTS", 0)
    try:
        whole = jm.encode({"w": w}, {"w": codec})
    finally:
        jax.config.update("jax_disable_most_optimizations", True)
    chex.assert_trees_all_equal(quick, whole)
