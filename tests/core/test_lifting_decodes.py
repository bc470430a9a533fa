"""Operations that have no encoded form decode a weight, and say which."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from lifted_leaves import IDS, OUT, STACK, TABLE, W, X, assert_lifts, clipped, leaf, soft

import jaxmem as jm

DECODES = {
    "add": (lambda w: w + 1, W, "add"),
    "compare": (lambda w: w > 0, W, "gt"),
    "sum": (lambda w: w.sum(), W, "reduce_sum"),
    "a product over other axes": (lambda w: w @ jnp.ones((6, 2)), W, "dot_general"),
    "a product over part of the sum": (
        lambda w: jnp.einsum("bk,hkn->bhn", X[:, :4], w),
        OUT,
        "dot_general",
    ),
    "a product of two leaves": (lambda w: w.T @ w, W, "dot_general"),
    "reshape across the sides": (lambda w: w.reshape(48), W, "reshape"),
    "fewer bits": (lambda w: lax.reduce_precision(w, 5, 10), W, "reduce_precision"),
    "flip of rows": (lambda w: jnp.flip(w, 0), W, "rev"),
    "padding": (lambda w: jnp.pad(w, 1), W, "pad"),
    "slice of a row": (lambda w: w[:, :2], W, "slice"),
    "columns of a table": (lambda w: w[:, IDS[0]], TABLE, "gather"),
    "convolution": (
        lambda w: lax.conv(jnp.ones((1, 4, 5, 5)), w.transpose(3, 2, 0, 1), (1, 1), "SAME"),
        leaf(3, 3, 4, 6, axes=(0, 1, 2)),
        "conv_general_dilated",
    ),
    "integers": (lambda w: w.astype(jnp.int32), W, "convert_element_type"),
    "custom_jvp": (soft, W, "custom_jvp_call"),
    "custom_vjp": (clipped, W, "custom_vjp_call"),
    "relu": (jax.nn.relu, W, "custom_jvp_call"),
    "scan over rows": (lambda w: lax.scan(lambda c, r: (c + r.sum(), r), 0.0, w), W, "scan"),
    "scan over a moved stack": (
        lambda w: lax.scan(lambda c, r: (c, r * 2), 0, w.transpose(1, 0, 2, 3)),
        leaf(4, 4, 8, 6),
        "scan",
    ),
    "scan of a changing carry": (
        lambda w: lax.scan(lambda c, _: (c * 2, None), w, None, 2)[0],
        W,
        "scan",
    ),
    "what a scan yields": (lambda w: lax.scan(lambda c, r: (c, r.T), 0, w)[1], STACK, "scan"),
    "what a branch returns": (
        lambda w: lax.cond(IDS[0, 0] > 0, lambda: w[0], lambda: w[1]),
        STACK,
        "cond",
    ),
    "what remat returns": (jax.checkpoint(lambda w: w), W, "remat"),
    "while": (lambda w: lax.while_loop(lambda w: w[0, 0] < 9, lambda w: w + 1, w), W, "while"),
    "shard_map": (
        jax.shard_map(
            lambda w: w, mesh=Mesh(jax.devices(), "x"), in_specs=P("x"), out_specs=P("x")
        ),
        W,
        "shard_map",
    ),
}


@pytest.mark.parametrize("fn, w, primitive", DECODES.values(), ids=DECODES)
def test_decodes_where_there_is_no_other_way_and_says_so(fn, w, primitive):
    calls = []
    assert_lifts(
        lambda p: fn(p["mlp"]["w"]), {"mlp": {"w": w}}, on_decode=lambda *call: calls.append(call)
    )
    assert (primitive, "mlp/w") in calls
    message = f"{primitive} has no encoded form for 'mlp/w'"
    with pytest.raises(TypeError, match=message):
        jax.eval_shape(jm.lift(lambda p: fn(p["mlp"]["w"]), on_decode="error"), {"mlp": {"w": w}})
