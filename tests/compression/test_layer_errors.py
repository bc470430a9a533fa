"""The error of a candidate is measured, on a part where that takes long, or interpolated."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmem as jm
from jaxmem.compression import budgeting
from jaxmem.compression.layer_errors import _interpolated

CODECS = [jm.Int(b, group=16) for b in (2, 4, 8)]


def weights(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"a": (32, 48), "b": (32, 32), "c": (32, 16)}
    tree = {name: jnp.asarray(rng.standard_t(4, s), jnp.float32) for name, s in shapes.items()}
    return tree | {"bias": jnp.ones(7), "steps": jnp.ones((2, 2), jnp.int32)}


@pytest.mark.parametrize("moments", ["gram", "diag"])
def test_with_stats_an_error_is_that_of_what_the_weight_computes(moments):
    params, x = {"w": weights()["a"]}, jax.random.normal(jax.random.key(1), (50, 32))
    x = jnp.diag(x[0]) if moments == "diag" else x  # inputs that do not correlate
    found = jm.stats(lambda p, x: x @ p["w"], params, [(x,)], moments=moments)["w"]
    error = x @ (params["w"] - CODECS[1].encode(params["w"]).decode())
    expected = jnp.square(error).sum() / jnp.square(x @ params["w"]).sum()
    got = jm.errors(params, CODECS[1:2], stats={"w": found})["w"][CODECS[1]]
    assert float(got / expected) == pytest.approx(1, 1e-3)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_weight_that_is_not_finite_is_named(bad):
    params = {"fine": jnp.ones((8, 8)), "broken": jnp.ones((8, 8)).at[3, 3].set(bad)}
    with pytest.raises(ValueError, match="broken"):
        jm.budget(params, nbytes=1_000, candidates=CODECS)


def test_what_was_not_measured_is_interpolated():
    found = np.array([[1.0, 1.0], [2.0, np.inf], [5.0, 3.0], [1.0, np.inf], [0.0, 0.0]])
    assert _interpolated(found)[:, 1].tolist() == [1.0, 2.0, 3.0, 1.5, 0.0]


def test_what_takes_long_is_measured_on_few_layers_exactly():
    rng = np.random.default_rng(0)
    w = jnp.asarray(rng.standard_normal((9, 32, 12)), jnp.float32)
    x = jnp.asarray(rng.standard_normal((99, 32)) @ rng.standard_normal((32, 32)), jnp.float32)
    fed = jm.stats(lambda p, x: [x @ layer for layer in p], list(w), [(x,)])["0"]
    fed = jax.tree.map(lambda a: jnp.broadcast_to(a, (9, *a.shape)), fed)
    codecs = [jm.GPTQ(jm.Int(3)), jm.LowRank(4)]
    found = jm.errors({"w": w}, codecs, stats={"w": fed})["w"]
    for codec in codecs:
        off = w - jax.jit(codec.encode, static_argnums=1)(w, (-2,), fed).decode()
        energy = lambda a: jnp.square(jnp.matmul(x, a)).sum((-1, -2))
        exact = np.array(energy(off) / energy(w))
        exact[4] = (exact[3] + exact[5]) / 2  # of nine, the one between
        np.testing.assert_allclose(found[codec], exact, rtol=1e-3)


def test_a_column_that_computes_most_counts_though_none_of_its_error_is_measured():
    x, w = (jax.random.normal(jax.random.key(i), (99, 32)) for i in range(2))
    w = jnp.tile(w[:1].T, (1, 4096)).at[:, -1].multiply(1_000)  # columns 0, 2, ... are measured
    fed = jm.stats(lambda p, x: x @ p["w"], {"w": w}, [(x,)])
    found = jm.errors({"w": w}, [jm.Int(3)], stats=fed)["w"][jm.Int(3)]
    off = jnp.square(x @ (w[:, :1] - jm.Int(3).encode(w[:, :1]).decode())).sum()
    whole = jnp.square(x @ w).sum()
    assert found == pytest.approx(float(4096 * off / whole), rel=1e-3)


def test_an_error_that_is_known_is_not_measured_again():
    params = weights()
    found = jm.errors(params, CODECS)
    plan = jm.budget(params, nbytes=3_200, candidates=CODECS)
    assert jm.budget(params, nbytes=3_200, candidates=CODECS, known=found) == plan
    found["a"] |= {CODECS[0]: np.array(0.0)}  # if that were so
    assert plan["a"] != CODECS[0]
    told = jm.budget(params, nbytes=3_200, candidates=CODECS, known=found)
    assert told["a"] == CODECS[0] and told["b"] == told["c"] == CODECS[-1]
    other = {"a": {CODECS[0]: np.zeros(5)}}  # of another stack
    assert jm.errors(params, CODECS, known=other)["a"][CODECS[0]] > 0


TRACED = []


@dataclasses.dataclass(frozen=True)
class Traced(jm.Int):
    """`Int`, which notes each shape whose bytes are asked for."""

    def encode(self, w, axes=(-2,), stats=None):
        if isinstance(w, jax.core.Tracer):
            TRACED.append(w.shape)
        return super().encode(w, axes, stats)


def test_the_bytes_of_leaves_of_one_shape_are_computed_once():
    params = {f"w{i}": jax.ShapeDtypeStruct((24, 16), jnp.float32) for i in range(9)}
    sizes = [budgeting._sizes(leaf, (-2,), [Traced(4)]) for leaf in params.values()]
    assert sizes == [[24 * 16 // 2 + 2 * 16]] * 9
    assert len(TRACED) == 1
