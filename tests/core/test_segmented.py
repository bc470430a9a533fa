"""A codec for each layer of a stack: the unchanged model runs as consecutive scans."""

import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cheap_jit import jit
from jax import lax

import jaxmem as jm
from jaxmem.compression.plan_paths import by_layer
from jaxmem.core.lazy import Lazy
from jaxmem.core.paths import path_of_layers
from jaxmem.core.segmented import Segmented

W, DOWN = (jax.random.normal(jax.random.key(i), (4, 32, 32)) / 6 for i in range(2))
PARAMS = {"layers": {"up": W, "down": DOWN}}
MIXED = {
    "layers/up": jm.Int(4, group=16),
    "layers[0]/up": jm.Int(8),
    "layers[2:4]/down": jm.Codebook("nf4"),
}
X = jax.random.normal(jax.random.key(9), (5, 32))


def run(params, x):
    def layer(x, w):
        x = x + jnp.tanh(x @ w["up"]) @ w["down"]
        return x, x.sum()

    return lax.scan(layer, x, params["layers"])


def close(got, want):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=3e-5), got, want)


ENC = jm.encode(PARAMS, jm.Plan(MIXED))


def test_layers_that_differ_are_consecutive_stacks_of_the_bytes_estimated():
    up, down = ENC["layers"]["up"], ENC["layers"]["down"]
    assert (up.ends, down.ends) == ((1, 4), (2, 4)) and down.parts[0].shape == (2, 32, 32)
    shapes = jax.eval_shape(lambda p: jm.encode(p, jm.Plan(MIXED)), PARAMS)
    assert jm.nbytes(shapes) == jm.nbytes(ENC) < jm.nbytes(PARAMS) / 2
    want = jm.Int(8).encode(W[:1]).decode(), jm.Int(4, group=16).encode(W[1:]).decode()
    np.testing.assert_array_equal(up.decode(), jnp.concatenate(want))
    rows = jm.report(PARAMS, ENC, jm.uses(run, PARAMS, X)).rows
    assert rows[1].encoded == jm.nbytes(up) and rows[0].decodes == rows[1].decodes == ()
    assert rows[1].form.startswith("[0:1] Int(zero=None, bits=8,") and "[1:4] Int(" in rows[1].form
    assert rows[0].form.startswith("[0:2] float32, [2:4] Codebook(")


def test_a_rule_names_layers_where_it_is_no_regex_of_a_path():
    rules = {"layers/.*": jm.Int(4), "layers[0]/.*": jm.Int(8), "layers[0:2]/up": jm.Int(5)}
    named = {
        "layers[0:1]/up": jm.Int(8),
        "layers[0:1]/down": jm.Int(8),
        "layers[0:2]/up": jm.Int(5),
    }
    whole = {"layers/up": jm.Int(4), "layers/down": jm.Int(4)}
    assert jm.choose(PARAMS, rules) == whole | named
    apart = {"w1": W, "w2": W, "w3": W}
    assert jm.choose(apart, {"w[12]": None}) == {"w1": None, "w2": None}
    with pytest.raises(ValueError, match="'layer/up' matches no leaf"):
        jm.choose(PARAMS, {"layer[0]/up": jm.Int(8)})


def test_a_scan_runs_as_scans_of_the_runs_that_are_alike():
    program = jit(jm.lift(run)).lower(ENC, X)
    assert str(jax.make_jaxpr(jm.lift(run))(ENC, X)).count(" scan[") == 3  # [0], [1], [2:4]
    close(program.compile()(ENC, X), run(jm.decode(ENC), X))
    names = []
    jax.eval_shape(jm.lift(run, on_decode=lambda op, path: names.append(path)), ENC, X)
    assert names == ["layers/down"] * names.count("layers/down")  # layers kept, or nothing


def test_a_weight_that_layers_share_is_whole_in_every_run():
    enc = jm.encode(PARAMS, {"layers/up": jm.Shared(2), "layers[0]/down": jm.Int(8)})
    close(jit(jm.lift(run))(enc, X), run(jm.decode(enc), X))


@pytest.mark.parametrize("transformation", ["grad", "vmap", "reverse", "remat"])
def test_it_goes_under_every_transformation(transformation):
    def backwards(params, x):
        layer = lambda x, w: (x + jnp.tanh(x @ w["up"]), x)
        return lax.scan(layer, x, params["layers"], reverse=True)

    loss = lambda p, x: (run(p, x)[0] ** 2).sum()
    fns = {
        "grad": lambda p, x: jax.grad(lambda x: jm.lift(loss)(p, x))(x),
        "vmap": lambda p, x: jax.vmap(lambda x: jm.lift(run)(p, x[None])[0])(x),
        "reverse": jm.lift(backwards),
        "remat": jm.remat(jm.lift(run), jm.Remat("full")),
    }
    fn = fns[transformation]
    close(jit(fn)(ENC, X), fn(jm.decode(ENC), X))


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x + nn.Dense(32)(jnp.tanh(x)), None


class Stack(nn.Module):
    @nn.compact
    def __call__(self, x):
        axes = dict(variable_axes={"params": 0}, split_rngs={"params": True}, length=4)
        return nn.scan(nn.remat(Layer), **axes)(name="layers")(x, None)[0]


def test_an_unmodified_linen_model_under_scan_and_remat_runs_on_it():
    params = Stack().init(jax.random.key(0), X)
    path = "layers/Dense_0/kernel"
    plan = {
        path: jm.Int(8),
        path_of_layers(path, 1, 3): jm.Int(4),
        path_of_layers(path, 3, 4): None,
    }
    enc = jm.encode(params, plan)
    close(jit(jm.lift(Stack().apply))(enc, X), Stack().apply(jm.decode(enc), X))


def test_lazy_stacks_are_read_by_layer_and_files_keep_the_parts(tmp_path):
    lazy = lambda w: Lazy(w.shape, w.dtype, lambda i: np.asarray(w[i]), stacked=True)
    enc = jm.encode(jax.tree.map(lazy, PARAMS), jm.Plan(MIXED))
    jm.save(tmp_path / "w.jm", enc)
    for tree in (enc, jm.load(tmp_path / "w.jm")):
        jax.tree.map(np.testing.assert_array_equal, tree, ENC)
        assert jax.tree.structure(tree) == jax.tree.structure(ENC)
    assert jm.Plan.from_json(jm.Plan(MIXED).to_json()) == jm.Plan(MIXED)


@pytest.mark.slow
def test_solvers_see_the_moments_of_their_own_layers():
    stats = jm.stats(run, PARAMS, [(X,)])
    plan = {"layers/up": jm.GPTQ(jm.Int(3)), "layers[1]/up": jm.GPTQ(jm.Int(8))}
    encoded = jm.encode(PARAMS, plan, stats=stats)["layers"]["up"]
    whole = jm.encode(PARAMS, {"layers/up": jm.GPTQ(jm.Int(3))}, stats=stats)["layers"]["up"]
    for i in (0, 2, 3):
        np.testing.assert_array_equal(encoded.decode()[i], whole.decode()[i])
    assert abs(encoded.decode()[1] - W[1]).max() < abs(whole.decode()[1] - W[1]).max() / 4


@pytest.mark.slow
def test_it_is_cut_over_devices_and_tuned():
    mesh = jm.mesh(fsdp=8)
    where = jm.shardings(ENC, mesh, {"layers/.*": jax.sharding.PartitionSpec(None, None, "fsdp")})
    close(jit(jm.lift(run))(jm.shard(ENC, where), X), run(jm.decode(ENC), X))
    fn = lambda p, x: run(p, x)[0]
    tuned = jm.tune(fn, PARAMS, ENC, [(X,)] * 3)
    assert jax.tree.structure(tuned) == jax.tree.structure(ENC)


def test_blocks_are_calibrated_by_their_own_codecs():
    layer = lambda x, w: (x + jnp.tanh(x @ w["up"]) @ w["down"], None)
    apply = lambda p, x: lax.scan(layer, x, p["layers"])[0]
    model = types.SimpleNamespace(tensors=PARAMS, apply=apply)
    plan = {"layers/up": jm.GPTQ(jm.Int(3)), "layers[1:3]/up": jm.GPTQ(jm.Int(8))}
    encoded = jm.encode_by_block(model, plan, [(X,)])
    assert jax.tree.structure(encoded) == jax.tree.structure(
        jm.encode(PARAMS, plan, stats=jm.stats(model.apply, PARAMS, [(X,)]))
    )
    assert encoded["layers"]["up"].ends == (1, 3, 4)


@pytest.mark.parametrize(
    ("entry", "message"),
    [("layers[4]/up", "a stack of 4 layers"), ("layer[0]/up", "which is no leaf"),
     ("layers[3:3]/up", "a stack of 4 layers")],
)  # fmt: skip
def test_an_entry_that_names_nothing_is_refused(entry, message):
    with pytest.raises(ValueError, match=message):
        jm.encode(PARAMS, {entry: jm.Int(8)})


def test_the_narrower_entry_counts_and_equal_neighbours_are_one_run():
    shapes = {"a/w": (6, 8, 8)}
    plan = {"a[1:5]/w": "x", "a[2]/w": "y", "a/w": "x"}
    assert by_layer(plan, shapes) == {"a/w": [(0, 2, "x"), (2, 3, "y"), (3, 6, "x")]}
    assert by_layer({"a[0:6]/w": "x"}, shapes) == {"a/w": "x"}
    assert isinstance(ENC["layers"]["up"].layers(0, 3), Segmented)
