"""A report says what was stored, how far off it is, and what would make it dense."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import jaxmem as jm
from jaxmem.core.lazy import Lazy


def made():
    rng = np.random.default_rng(0)
    w = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    params = {"table": w(24, 16), "layers": {"up": w(3, 16, 32)}, "bias": w(32)}
    plan = {"table": jm.Int(8), "layers/up": jm.Int(4, group=8)}
    return params, plan


def run(params, ids):
    x = params["table"][ids]
    for i in range(3):
        x = (x @ params["layers"]["up"][i] + params["bias"][None])[:, :16]
    return x


def encoded(params, plan, fn=run):
    uses = jm.uses(fn, params, jnp.zeros(5, jnp.int32))
    return jax.jit(lambda p: jm.encode(p, plan, uses=uses))(params), uses


def test_bytes_and_errors_are_those_of_the_leaves():
    params, plan = made()
    enc, _ = encoded(params, plan)
    rows = {row.path: row for row in jm.report(params, enc).rows}
    up, leaf = params["layers"]["up"], enc["layers"]["up"]
    assert rows["layers/up"].encoded == jm.nbytes(leaf)
    expected = jnp.linalg.norm((up - leaf.decode()).ravel()) / jnp.linalg.norm(up.ravel())
    assert rows["layers/up"].error == pytest.approx(float(expected), rel=1e-5)
    assert (rows["bias"].error, rows["bias"].form) == (0.0, "float32")
    total = jm.report(params, enc).total
    assert (total.dense, total.encoded) == (jm.nbytes(params), jm.nbytes(enc))


def test_lazy_weights_have_the_same_report():
    params, plan = made()
    enc, _ = encoded(params, plan)
    up = np.asarray(params["layers"]["up"])
    lazy = Lazy(up.shape, up.dtype, lambda i: up[i], stacked=True)
    assert jm.report(params | {"layers": {"up": lazy}}, enc) == jm.report(params, enc)


def test_what_lies_on_each_device_and_what_could_not_be_divided_is_told():
    params, plan = made()
    enc, _ = encoded(params, plan)
    rules = {"table": P(None, "fsdp"), "layers/up": P(None, "fsdp")}  # 2 groups over 8 devices
    where = jm.shardings(enc, jm.mesh(fsdp=8), rules)
    rows = {row.path: row for row in jm.report(params, jm.shard(enc, where)).rows}
    up = jm.nbytes(enc["layers"]["up"])
    assert (rows["layers/up"].per_device, rows["layers/up"].cost) == (up, up - up // 8)
    codes, scales = 24 * 16, 24 * 2  # a scale for each row is on every device
    assert rows["table"].per_device == codes // 8 + scales
    shapes = jm.shard(jax.eval_shape(lambda tree: tree, enc), where)
    assert "on each device" in str(jm.report(params, shapes))
    assert "on each device" not in str(jm.report(params, enc))


def test_abstract_trees_are_reported_without_errors():
    params, plan = made()
    shapes = jax.eval_shape(lambda tree: tree, params)
    found = jm.report(shapes, jm.encode(shapes, plan))
    assert {row.error for row in found.rows} == {None}
    assert "error" not in str(found)


def test_operations_that_decode_are_named():
    params, plan = made()
    both = lambda p, ids: run(p, ids) * p["table"].sum()
    enc, uses = encoded(params, plan, both)
    rows = {row.path: row for row in jm.report(params, enc, uses=uses).rows}
    assert rows["table"].decodes == ("reduce_sum",)
    assert rows["layers/up"].decodes == ()
    assert "reduce_sum" in str(jm.report(params, enc, uses=uses))


def test_a_product_over_other_axes_than_it_was_encoded_for_decodes():
    params, _ = made()
    enc = params | {"table": jm.Int(8).encode(params["table"], (-2,))}
    uses = jm.uses(run, params, jnp.zeros(5, jnp.int32))
    assert jm.report(params, enc, uses=uses).rows[-1].decodes == ("gather",)


def test_the_json_holds_every_row_and_the_total():
    params, plan = made()
    enc, uses = encoded(params, plan)
    found = jm.report(params, enc, uses=uses)
    data = json.loads(found.to_json())
    assert [row["path"] for row in data["rows"]] == [row.path for row in found.rows]
    assert data["total"]["bits_per_weight"] == found.total.bits_per_weight


@pytest.mark.parametrize("other", [{"a": jnp.ones((2, 2))}, {"w": jnp.ones((2, 3))}])
def test_other_paths_or_shapes_are_an_error(other):
    with pytest.raises(ValueError, match="expected the same"):
        jm.report({"w": jnp.ones((2, 2))}, other)
