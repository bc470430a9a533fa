"""The codecs that the contract tests check, and what these tests share: add a new codec to CODECS.

`tests/codecs/test_contract_bounds.py` checks bytes and errors, `test_contract_models.py` checks
unmodified models, gradients and shards, and `test_contract_laws.py` checks products and structure.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cheap_jit import jit

import jaxmem as jm
from jaxmem.codecs.sparse import Sparse

CODECS = [
    *map(jm.Int, range(2, 9)),
    jm.Int(8, symmetric=False),
    jm.Int(3, group=16),
    jm.Int(4, group=16),
    jm.Int(4, group=10, symmetric=False),  # the last group is short
    jm.Cast("bfloat16"),
    jm.Cast("float16"),
    jm.LowRank(4),
    jm.Chain((jm.LowRank(4), jm.Int(8))),
    *map(jm.Float, ("e4m3", "e5m2", "mxfp8", "mxfp4", "nvfp4")),
    jm.Float("e2m1", group=10),
    jm.Codebook("nf4"),
    jm.Codebook("fp4", group=16),
    jm.KMeans(3),
    jm.KMeans(2, group=16),
    jm.Affine(4, group=16),
    jm.Affine(3, group=10),
    jm.DoubleQuant(jm.Codebook("nf4", group=8), jm.Int(8, group=16, symmetric=False)),
    jm.KQuant(4),
    jm.Planes(group=16),
    jm.Sum((jm.Int(4), jm.LowRank(4))),
    jm.Search(jm.Int(4, group=10, symmetric=False)),
    jm.QERA(jm.Int(3), 2),
    jm.Smooth(jm.Int(4, group=16)),
    jm.Bitmask(0.5),
    jm.NM(2, 4),
    jm.NM(4, 8),
    jm.Blocks(0.5, block=(8, 8)),
    jm.Inputs(0.5, size=4),
    jm.Outputs(0.5),
    jm.Csr(0.1),
    jm.Coo(0.02),
    jm.Chain((jm.Bitmask(0.3), jm.Int(8))),
    jm.Chain((jm.NM(2, 4), jm.Int(4, group=6))),
    jm.Permute(jm.NM(2, 4)),
]
# One codec of each class, without KQuant: its leaf is of the class of DoubleQuant's.
KINDS = list({type(codec): codec for codec in CODECS if codec != jm.KQuant(4)}.values())
KEEPS = [codec for codec in CODECS if isinstance(codec, Sparse)]
first_codec = lambda codec: getattr(codec, "codecs", [codec])[0]
SPARSE = [c for c in CODECS if c in KEEPS or isinstance(first_codec(c), Sparse | jm.Permute)]
KINDS_THAT_ROUND = jm.Int | jm.Affine | jm.Cast | jm.Float | jm.Codebook
ROUNDS = [codec for codec in CODECS if isinstance(codec, KINDS_THAT_ROUND)]
TOLERANCE = {"float32": dict(rtol=1e-5, atol=3e-5), "bfloat16": dict(rtol=2e-2, atol=1e-1)}
FORMS = {
    "f32": (jnp.float32, (32, 24)),
    "bf16 stacked": (jnp.bfloat16, (3, 32, 24)),
    "bf16": (jnp.bfloat16, (32, 24)),
    "f32 stacked": (jnp.float32, (3, 32, 24)),
}
each_codec = pytest.mark.parametrize("codec", CODECS, ids=str)
each_kind = pytest.mark.parametrize("codec", KINDS, ids=lambda c: type(c).__name__)
is_quick = lambda codec, form: form == "f32" or (form == "bf16 stacked" and codec in KINDS)
# Each codec has a matrix in f32 and a stack in bf16, one of each class also a matrix in bf16.
# Another law maps and scans over a stack in f32.
PAIRS = [(c, f) for c in CODECS for f in ("f32", "bf16 stacked")]
PAIRS += [(c, "bf16") for c in KINDS]
each_pair = pytest.mark.parametrize(
    "codec, form",
    [
        pytest.param(c, f, marks=[] if is_quick(c, f) else pytest.mark.slow, id=f"{c}-{f}")
        for c, f in PAIRS
    ],
)


@functools.cache
def weight(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


@functools.cache
def encoder(codec, axes=(-2,)):
    return jit(lambda w: codec.encode(w, axes))


@functools.cache
def encoded(codec, form="f32"):
    dtype, shape = FORMS[form]
    return encoder(codec)(weight(*shape).astype(dtype))


@functools.cache
def compiled_decode(codec, form="f32"):
    """The compiled program that decodes a leaf of this codec and form to f32."""
    leaf = encoded(codec, form)
    return jit(lambda leaf: leaf.astype(jnp.float32).decode()).lower(leaf).compile()


def decoded(codec, form="f32"):
    return compiled_decode(codec, form)(encoded(codec, form))


def assert_close(got, want):
    got, want = jnp.asarray(got), jnp.asarray(want)
    assert (got.shape, got.dtype) == (want.shape, want.dtype)
    np.testing.assert_allclose(
        got.astype(jnp.float32), want.astype(jnp.float32), **TOLERANCE[str(want.dtype)]
    )


def assert_lifts(fn, *args, on_decode="error"):
    """`fn` lifted gives what `fn` gives on the decoded arguments; one program computes both."""
    both = lambda *args: (jm.lift(fn, on_decode=on_decode)(*args), fn(*jm.decode(args)))
    got, want = jit(both)(*args)
    jax.tree.map(assert_close, got, want)


def assert_same(got, want):
    chex.assert_trees_all_equal(got, want, strict=True)
