"""Trees that tests save: encoded leaves of a class of their own, and containers."""

import dataclasses
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxmem as jm

MESH = [("a", None), (None, "b"), ("b", "a"), (("a", "b"), None), (None, None)]
ROOT = pathlib.Path(__file__).parents[2]
DTYPES = ["bool", "int2", "int4", "int8", "int16", "int32", "uint2", "uint4", "uint8", "uint32"]
DTYPES += ["float4_e2m1fn", "float8_e4m3fn", "float8_e5m2", "float16", "bfloat16", "float32"]


@dataclasses.dataclass(frozen=True)
class Rounding:
    """A codec, as a static field."""

    bits: int = 4
    group: int | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rounded(jm.Encoded):
    q: Any
    scales: tuple
    zero: Any
    dtype: Any = dataclasses.field(metadata=dict(static=True))
    by: Rounding = dataclasses.field(metadata=dict(static=True), default=Rounding())
    axes: tuple[int, ...] = dataclasses.field(metadata=dict(static=True), default=(-2,))
    shape = property(lambda self: self.q.shape)

    def decode(self):
        return self.q.astype(self.dtype)

    def astype(self, dtype):
        return dataclasses.replace(self, dtype=jnp.dtype(dtype))


class Moments(NamedTuple):
    count: Any
    mu: Any


CLASSES = [Rounded, Rounding, Moments]


def rounded(seed=0, shape=(3, 4, 5)):
    q = jnp.asarray(np.random.default_rng(seed).integers(-8, 8, shape).astype("int4"))
    scales = (jnp.ones(shape[-1], jnp.float16), jnp.ones(3, jnp.bfloat16))
    return Rounded(q, scales, None, jnp.dtype("float32"), Rounding(4, group=2))


def nested():
    return Rounded(rounded(1), (), rounded(2), jnp.dtype("bfloat16"), Rounding(2), axes=(0, 1))


def example():
    return {
        "w": rounded(),
        "b": np.arange(5, dtype=np.int16),
        "step": 7,
        "none": None,
        "list": [nested(), 1.5],
    }


def same(a, b):
    """Equal structure (static fields with it), dtypes and bits."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    is_key = lambda x: isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    numbers = lambda x: np.asarray(jax.random.key_data(x) if is_key(x) else x)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
        assert type(x) is type(y)
        assert numbers(x).dtype == numbers(y).dtype
        np.testing.assert_array_equal(numbers(x), numbers(y))
