"""Layers that share a weight: fewer bytes, one product, scanned by `lift` like any stack."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cheap_jit import jit
from jax import lax

import jaxmem as jm
from jaxmem.core.lazy import Lazy
from jaxmem.io.checkpoint import load, save

L, K, N = 6, 24, 16
draw = lambda *shape: jax.random.normal(jax.random.key(sum(shape)), shape)
W = draw(3, K, N).repeat(2, 0) + 0.1 * draw(L, K, N)  # neighbours are similar
CODECS = [
    jm.Shared(3),
    jm.Shared(2, order="cycle"),
    jm.Shared(1, codec=jm.Int(8)),
    jm.Sum((jm.Shared(3), jm.LowRank(2))),
    jm.Basis(4, groups=2),
    jm.Basis(4, groups=3, order="cycle", codec=jm.Int(8)),
]
each_codec = pytest.mark.parametrize("codec", CODECS, ids=str)
encoded = lambda codec, *args: jit(codec.encode, static_argnums=1)(W, *args)


def network(params, x):
    """Layers in a scan, one layer by its index, and products with all layers."""
    step = lambda x, layer: (x + jnp.tanh(x @ layer["w"]).mean(-1, keepdims=True), None)
    y, _ = lax.scan(jax.checkpoint(step), x, params)
    w, batch = params["w"], jnp.stack([x, 2 * x, x, x, -x, x])
    return y @ w[2], jnp.einsum("bk,lkn->bln", x, w), jnp.einsum("lbk,lkn->lbn", batch, w)


@each_codec
def test_an_unmodified_scan_runs_on_it_and_its_gradient_is_that_of_the_dense(codec):
    loss = lambda leaf, x: sum(jnp.sin(y / 9).mean() for y in network({"w": leaf}, x))
    dense = lambda leaf, x: loss(leaf.decode(), x)
    slopes = [
        jax.value_and_grad(fn, (0, 1), allow_int=True)
        for fn in (jm.lift(loss, on_decode="error"), dense)
    ]
    got, want = jit(lambda *args: [slope(*args) for slope in slopes])(encoded(codec), draw(5, K))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        if a.dtype != jax.dtypes.float0:
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


@each_codec
def test_bytes_and_shapes_are_known_before_and_survive_a_file(codec, tmp_path):
    leaf, abstract = encoded(codec), jax.eval_shape(codec.encode, W)
    assert (leaf.shape, leaf.dtype, leaf.stack) == (W.shape, W.dtype, (L,))
    assert jm.nbytes(leaf) == jm.nbytes(abstract) < jm.nbytes(W)
    save(tmp_path / "w.jm", {"w": leaf})
    again = load(tmp_path / "w.jm")["w"]
    assert jax.tree.structure(again) == jax.tree.structure(leaf)
    np.testing.assert_array_equal(again.decode(), leaf.decode())
    half = leaf.astype(jnp.bfloat16)
    assert half.decode().dtype == jnp.bfloat16 and jm.nbytes(half) == jm.nbytes(leaf)


@each_codec
def test_a_slice_a_part_and_a_transpose_are_those_of_the_dense(codec):
    leaf = encoded(codec)
    want = leaf.decode()
    fn = lambda w: (w[1:5], lax.dynamic_slice_in_dim(w, 3, 2), w.mT[4], w.reshape(L, K, 4, 4)[0])
    got = jit(lambda leaf: jm.decode(jm.lift(fn)(leaf)))(leaf)
    near = functools.partial(np.testing.assert_allclose, atol=1e-6)
    jax.tree.map(near, got, fn(want))
    jax.tree.map(near, jm.decode((leaf.layers(1, 5), leaf.layer(4))), (want[1:5], want[4]))
    error = np.linalg.norm(want - W) / np.linalg.norm(W)
    assert jm.report({"w": W}, {"w": leaf}).rows[0].error == pytest.approx(error, rel=1e-5)
    assert leaf.shard_shape(0, 3).shape == (2, K, N) and leaf.shard_shape(-1, 2).shape == (
        L,
        K,
        N // 2,
    )


def test_the_shared_weight_is_the_mean_or_what_computes_most_alike():
    np.testing.assert_allclose(
        encoded(jm.Shared(3)).decode()[::2], W.reshape(3, 2, K, N).mean(1), atol=1e-6
    )
    x = draw(L, 200, K) * jnp.exp(draw(L, 1, K))
    fed = jm.Moments(x.mT @ x / 200, x.mean(1), jnp.abs(x).max(1), jnp.full(L, 200.0))
    lost = jit(lambda leaf: jnp.square(x @ (leaf.decode() - W)).sum())
    diag = jm.Moments(fed.diag, *(fed.mean, fed.absmax, fed.count))
    for codec in (jm.Shared(2), jm.Basis(4, groups=2)):
        blind, some, all_ = (
            lost(jit(codec.encode, static_argnums=1)(W, (-2,), s)) for s in (None, diag, fed)
        )
        assert all_ < some < blind


def test_more_rank_or_groups_lose_less_and_a_delta_makes_up():
    error = lambda codec: float(jnp.square(encoded(codec).decode() - W).sum())
    assert error(jm.Shared(3)) < error(jm.Shared(1))
    assert error(jm.Basis(8)) < error(jm.Basis(2))
    assert error(jm.Sum((jm.Shared(3), jm.LowRank(2)))) < error(jm.Shared(3))


def test_lazy_layers_are_read_together():
    lazy = {"w": Lazy(W.shape, W.dtype, lambda i: np.asarray(W[i]), stacked=True)}
    assert jm.nbytes(jm.encode(lazy, {"w": jm.Shared(3)})) == 3 * K * N * 4 + L
    inner = jm.Sum((jm.Shared(3), jm.LowRank(2)))
    np.testing.assert_array_equal(
        jm.encode(lazy, {"w": inner})["w"].decode(), encoded(inner).decode()
    )
    part = jm.encode(lazy, {"w[0:4]": jm.Shared(2)})["w"]
    np.testing.assert_array_equal(part.decode()[4:], W[4:])
    assert part.parts[0].base.shape == (2, K, N)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: jm.Shared(0), "at least 1 group, got 0"),
        (lambda: jm.Shared(2, order="spiral"), "sequence.*got 'spiral'"),
        (lambda: encoded(jm.Shared(4)), "4 groups of 6 layers"),
        (lambda: encoded(jm.Shared(6)), "6 groups of 6 layers"),
        (lambda: jm.Shared(1).encode(W[0]), "stack of layers to tie"),
        (lambda: jm.Basis(0), "rank of at least 1"),
        (lambda: encoded(jm.Basis(16, groups=3)), "rank 16 saves nothing"),
    ],
)
def test_wrong_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_only_lift_slices_it():
    leaf = encoded(jm.Shared(3))
    with pytest.raises(ValueError):
        lax.scan(lambda c, w: (c, w.decode()), 0, leaf)
