"""Models run on every codec unchanged: three frameworks, scan, remat, gradients and shards."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cheap_jit import jit
from contract_codecs import (
    assert_close,
    assert_lifts,
    decoded,
    each_codec,
    each_kind,
    encoded,
    encoder,
    weight,
)
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxmem as jm
from jaxmem.core.codec import needs_stats

IDS = np.array([[3, 1, 4], [1, 5, 9]])


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        h = nn.silu(nn.Dense(24, name="up")(x)).reshape(*x.shape[:-1], 4, 6)
        return x + nn.DenseGeneral(16, (-2, -1), name="down")(h), None


class Linen(nn.Module):
    """A table of embeddings, a block, and a head that uses the table again."""

    @nn.compact
    def __call__(self, ids):
        table = nn.Embed(20, 16, name="table")
        return table.attend(Block(name="block")(table(ids))[0])


class Twin(nnx.Module):
    """The network of `Linen`, in NNX."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.table = nnx.Embed(20, 16, rngs=rngs)
        self.up = nnx.Linear(16, 24, rngs=rngs)
        self.down = nnx.LinearGeneral((4, 6), 16, axis=(-2, -1), rngs=rngs)

    def __call__(self, ids):
        x = self.table(ids)
        return self.table.attend(x + self.down(nnx.silu(self.up(x)).reshape(*x.shape[:-1], 4, 6)))


def plain(params, ids):
    x = params["table"]["kernel"][ids]
    h = jax.nn.silu(x @ params["up"]["kernel"]).reshape(*x.shape[:-1], 4, 6)
    x = x + jnp.einsum("...hk,hkd->...d", h, params["down"]["kernel"])
    return x @ params["table"]["kernel"].T


@functools.cache
def model(name):
    """(function of params and ids, params) of one network, written for the framework `name`."""
    if name == "linen":
        return Linen().apply, Linen().init(jax.random.key(0), IDS)
    if name == "module":
        return lambda module, ids: module(ids), Twin()
    if name == "state":
        graph, state = nnx.split(Twin())
        return lambda state, ids: nnx.merge(graph, state)(ids), state
    shapes = {"table": (20, 16), "up": (16, 24), "down": (4, 6, 16)}
    return plain, {name: {"kernel": weight(*shape) / 4} for name, shape in shapes.items()}


@each_kind
def test_an_unmodified_model_runs_on_it(codec):
    runs_on("linen", codec)


@pytest.mark.parametrize("codec", [jm.Int(8), jm.Chain((jm.NM(2, 4), jm.Int(4)))], ids=str)
@pytest.mark.parametrize("name", ["state", "module", "plain"])
def test_a_model_of_another_framework_runs_on_it(codec, name):
    runs_on(name, codec)


def runs_on(name, codec):
    fn, params = model(name)
    plan = jm.choose(params, {".*(kernel|embedding)": codec})
    fed = jm.stats(fn, params, [(IDS,)]) if needs_stats(codec) else None
    uses = jm.uses(fn, params, IDS)
    enc = jit(lambda params, fed: jm.encode(params, plan, uses, fed))(params, fed)
    assert len(plan) == 3 and jm.nbytes(enc) < jm.nbytes(params)
    assert_lifts(fn, enc, IDS)


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return jnp.tanh(x.at[:, :24].add(nn.Dense(24)(x))), None


class Stack(nn.Module):
    @nn.compact
    def __call__(self, x):
        axes = dict(variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        return nn.scan(nn.remat(Layer), **axes)(name="layers")(x, None)[0]


@each_codec
def test_an_unmodified_model_runs_on_it_under_scan_and_remat(codec):
    kernel, bias = encoded(codec, "f32 stacked"), jnp.zeros((3, 24))
    params = {"params": {"layers": {"Dense_0": {"kernel": kernel, "bias": bias}}}}
    assert_lifts(Stack().apply, params, weight(5, 32, seed=1))


@each_codec
def test_gradients_reach_the_input_and_the_floats_inside(codec):
    x, leaf = weight(5, 32, seed=1), encoded(codec)
    loss = lambda x, w: (jnp.tanh(x @ w) ** 2).sum()
    dense = lambda x, leaf: loss(x, leaf.decode())
    slopes = [jax.grad(fn, (0, 1), allow_int=True) for fn in (jm.lift(loss), dense)]
    got, want = jit(lambda *args: [slope(*args) for slope in slopes])(x, leaf)
    assert_close(got[0], want[0])
    floats = lambda tree: [g for g in jax.tree.leaves(tree) if g.dtype != jax.dtypes.float0]
    assert floats(got[1]) or getattr(codec, "format", "").startswith("mx")  # no float inside
    in_f32 = lambda tree: [g.astype("f4") for g in floats(tree)]
    for a, b in zip(in_f32(got[1]), in_f32(want[1]), strict=True):
        atol = max(1e-3, 2e-6 * abs(b).max())  # a compiled product rounds x
        np.testing.assert_allclose(a, b, rtol=1e-2, atol=atol)


@each_kind
def test_tangents_pass_through(codec):
    x, leaf = weight(5, 32, seed=1), encoded(codec)
    got = jit(lambda x, w: jax.jvp(lambda x: jm.lift(jnp.dot)(x, w), (x,), (jnp.sin(x),)))(x, leaf)
    assert_close(got[0], x @ decoded(codec))
    assert_close(got[1], jnp.sin(x) @ decoded(codec))


@each_kind
def test_the_backward_pass_keeps_the_encoded_weight(codec):
    x, leaf = weight(1, 32, seed=1), encoded(codec)
    vjp = lambda x, w: jax.vjp(lambda x: jm.lift(jnp.dot)(x, w), x)[1]
    residuals = jax.tree.leaves(jax.eval_shape(vjp, x, leaf))
    assert all(r.size < leaf.size or r.dtype.itemsize < leaf.dtype.itemsize for r in residuals)


@each_kind
def test_sharded_gives_what_unsharded_gives(codec):
    mesh = Mesh(jax.devices(), "d")
    across = lambda a: P(*[None] * (a.ndim - 1), None if a.shape[-1] % 8 else "d")
    put = lambda a: jax.device_put(a, NamedSharding(mesh, across(a)))
    leaf, x = encoder(codec)(weight(2, 48, 16)), weight(8, 48, seed=1)
    fn = jit(jm.lift(lambda x, w: jnp.einsum("bk,lkn->lbn", x, w)))
    for weights in (jax.tree.map(put, leaf), leaf):
        assert_close(fn(jax.device_put(x, NamedSharding(mesh, P("d"))), weights), fn(x, leaf))
