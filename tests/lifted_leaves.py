"""Encoded leaves of several shapes that tests lift functions on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from cheap_jit import jit

import jaxmem as jm

X = jax.random.normal(jax.random.key(1), (3, 8))
IDS = jnp.array([[1, 0], [7, 7]])
QUICK = jm.LowRank(2)  # two plain products: quick to compile


@functools.cache
def leaf(*shape, axes=(-2,), codec=QUICK):
    return jit(lambda: codec.encode(jax.random.normal(jax.random.key(0), shape), axes))()


def assert_lifts(fn, *args, on_decode="error", tol=1e-5):
    """The lifted `fn` gives what `fn` gives on the decoded arguments, and decodes no weight."""
    got = jit(jm.lift(fn, on_decode=on_decode))(*args)
    want = fn(*jm.decode(args))
    close = functools.partial(np.testing.assert_allclose, rtol=tol, atol=tol)
    jax.tree.map(close, jm.decode(got), want)


W = leaf(8, 6)
OUT = leaf(2, 4, 6, axes=(0, 1))
TABLE = leaf(10, 8, axes=(-1,))
STACK = leaf(4, 8, 6)
LAYERS = leaf(8, 8, 8, codec=jm.Cast("float16"))
mul = jnp.matmul


@jax.custom_jvp
def soft(x):
    return jnp.logaddexp(x, 0.0)


soft.defjvp(lambda p, t: (soft(*p), jax.nn.sigmoid(*p) * t[0]))


@jax.custom_vjp
def clipped(x):
    return x


clipped.defvjp(lambda x: (x, None), lambda _, g: (jnp.clip(g, -0.5, 0.5),))
