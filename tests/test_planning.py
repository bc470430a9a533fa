"""encode of lazy params: the same leaves as of dense ones, and less memory on the way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmem as jm
from jaxmem import planning
from jaxmem.lazy import Lazy

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
    monkeypatch.setattr(planning, "BLOCK", 16 * 40)  # rows at a time, the last block short
    w = np.random.default_rng(0).standard_normal(shape, np.float32)
    uses = {"w": [jm.Use("dot_general", axes, (1,), "float32", 0)]}
    encode = lambda leaf: jm.encode({"w": leaf}, {"w": codec}, uses=uses)
    found, expected = encode(lazily(w, len(shape) == 3)), encode(jnp.asarray(w))
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("at", [(0, 0), (60, 39)])
def test_what_is_not_finite_is_found_in_any_block(at, monkeypatch):
    monkeypatch.setattr(planning, "BLOCK", 16 * 40)
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
