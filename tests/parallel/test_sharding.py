"""Encoded models on many devices compute what one device computes; each holds only its share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cheap_jit import jit
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxmem as jm
from jaxmem.architectures import bert, gpt2, llama
from jaxmem.compiler import cost_analysis, hlo
from jaxmem.models import Model
from jaxmem.parallel.sharded_array import ShardedArray

CONFIGS = {
    "llama": llama.Config(
        vocab=96, width=48, ffn=96, layers=3, heads=3, kv_heads=3, head_dim=16, tied=True
    ),
    "gpt2": gpt2.Config(vocab=97, width=48, layers=2, heads=3, context=24),
    "bert": bert.Config(vocab=96, width=48, ffn=96, layers=2, heads=3, context=24),
}
INT4 = jm.Int(4, group=16)
MESHES = {
    "fsdp": (jm.layouts.fsdp, dict(fsdp=8)),
    "tensor": (jm.layouts.tensor, dict(tensor=3)),
    "fsdp_tensor": (jm.layouts.fsdp_tensor, dict(fsdp=2, tensor=3)),
    "sequence": (jm.layouts.sequence, dict(data=2, sequence=4)),
}


@functools.cache
def tiny(family="llama", codec=INT4):
    """(model, its params encoded, ids, its logits on one device)."""
    module = {"llama": llama, "gpt2": gpt2, "bert": bert}[family].module(CONFIGS[family])
    ids = jax.random.randint(jax.random.key(1), (8, 16), 0, 96)
    params = jit(module.init)(jax.random.key(0), ids)["params"]
    model = Model(CONFIGS[family], params, None, "tiny")
    plan = jm.choose(params, {".*(kernel|embed/embedding)": codec})
    uses = jm.uses(model.apply, params, ids)
    enc = jit(lambda params: jm.encode(params, plan, uses=uses))(params)
    return model, enc, ids, jit(model.apply)(enc, ids)


def shard_on(kind, tree, config):
    """(the tree on the mesh of that kind, the mesh)."""
    layout, axes = MESHES[kind]
    mesh = jm.mesh(**axes)
    return jm.shard(tree, jm.shardings(tree, mesh, layout(config, mesh))), mesh


def close(got, want, limit=1e-5):
    assert float(jnp.abs(got - want).max() / jnp.abs(want).max()) < limit


@pytest.mark.parametrize(
    "family, kind",
    [*[("llama", k) for k in MESHES], pytest.param("gpt2", "tensor", marks=pytest.mark.slow)],
)
def test_a_model_sharded_is_the_model_and_gathers_no_stack(family, kind):
    model, enc, ids, want = tiny(family)
    placed, mesh = shard_on(kind, enc, model.config)
    rows = jax.device_put(ids, NamedSharding(mesh, P(("data", "fsdp"))))
    program = jit(model.apply).lower(placed, rows).compile()
    close(program(placed, rows), want)
    text = hlo.read(program.as_text())
    gathered = [op for _, op, _ in text.walk() if op.kind.startswith("all-gather")]
    codes = [op.nbytes for op in gathered if op.type.startswith("u8")]
    assert max(codes, default=0) <= jm.nbytes(enc["embed"]["embedding"])
    assert not any(op.type.startswith(f"u8[{model.config.layers},") for op in gathered)
    assert cost_analysis.collective_bytes(text)


@pytest.mark.parametrize("family", ["gpt2", pytest.param("bert", marks=pytest.mark.slow)])
def test_other_families_have_layouts(family):
    model, enc, ids, want = tiny(family)
    placed, _ = shard_on("fsdp_tensor", enc, model.config)
    close(jit(model.apply)(placed, ids), want)
    mesh = jm.mesh(fsdp=2, tensor=3)
    table = jm.placement(enc, mesh, jm.layouts.fsdp_tensor(model.config, mesh))
    assert {r.path for r in table.rows if r.spec != "P()" and r.least < r.nbytes} > {
        "layers/attn/out/kernel",
        "layers/mlp/up/bias",
    }


CODECS = [
    jm.Int(8),
    jm.Int(3, symmetric=False),
    jm.Cast("bfloat16"),
    jm.Float("mxfp4"),
    jm.KMeans(2),
    jm.Planes(group=16),
    jm.LowRank(4),
    jm.Chain((jm.LowRank(8), jm.Int(8))),
    jm.DoubleQuant(jm.Codebook("nf4", group=16), jm.Int(8, group=8)),
    jm.Sum((jm.Int(4), jm.LowRank(4))),
    jm.Dynamic(jm.Int(8)),
]


QUICK = (jm.Chain, jm.DoubleQuant, jm.Sum, jm.Dynamic)


@pytest.mark.parametrize(
    "codec",
    [pytest.param(c, marks=[] if isinstance(c, QUICK) else pytest.mark.slow) for c in CODECS],
    ids=str,
)
def test_every_leaf_multiplies_where_it_lies_and_lets_gradients_through(codec):
    w = jax.random.normal(jax.random.key(0), (64, 96))
    x = jax.random.normal(jax.random.key(1), (4, 8, 64)) / 8
    mesh, leaf = jm.mesh(fsdp=2, tensor=2), jit(codec.encode)(w)

    def output_and_gradient(x, leaf):
        product = lambda x: jnp.sin(jm.lift(jnp.matmul, on_decode="error")(x, leaf))
        y, pullback = jax.vjp(product, x)
        return y, pullback(y)[0]

    for spec in (P(None, ("tensor", "fsdp")), P("tensor", "fsdp")):
        placed = jm.shard(leaf, jm.shardings(leaf, mesh, {"": spec}))
        assert jm.nbytes(placed) == jm.nbytes(leaf)
        results = (jit(output_and_gradient)(x, weight) for weight in (placed, leaf))
        for got, want in zip(*results):
            close(got, want)


def test_few_tokens_are_gathered_in_place_of_weights():
    leaf = INT4.encode(jnp.ones((256, 96)))
    placed = jm.shard(leaf, jm.shardings(leaf, jm.mesh(fsdp=8), {"": P(None, "fsdp")}))
    gathered = {}
    for rows in (8, 512):
        program = jit(jm.lift(jnp.matmul)).lower(jnp.ones((rows, 256)), placed).compile()
        collectives = cost_analysis.collective_bytes(hlo.read(program.as_text()))
        gathered[rows] = collectives.get("all-gather", 0)
    assert gathered[8] == 0 and gathered[512] == jm.nbytes(leaf)


def test_rows_are_looked_up_where_they_lie():
    table = jm.Int(8).encode(jax.random.normal(jax.random.key(0), (96, 32)), (-1,))
    ids = jax.random.randint(jax.random.key(1), (4, 8), 0, 96)
    look_up = jit(jm.lift(lambda t, i: jnp.take(t, i, axis=0, mode="clip"), on_decode="error"))
    for spec in (P(("tensor", "fsdp")), P("fsdp", "tensor"), P(None, ("tensor", "fsdp"))):
        placed = jm.shard(table, jm.shardings(table, jm.mesh(fsdp=2, tensor=4), {"": spec}))
        np.testing.assert_array_equal(look_up(placed, ids), look_up(table, ids))


def test_a_weight_that_every_device_holds_is_multiplied_by_each_for_its_own_rows():
    leaf = INT4.encode(jax.random.normal(jax.random.key(0), (64, 96)))
    placed = jm.shard(leaf, jm.shardings(leaf, jm.mesh(data=4, tensor=2), {"": P()}))
    x = jax.random.normal(jax.random.key(1), (8, 64))
    product = jm.lift(jnp.matmul)
    assert "shard_map" in str(jax.make_jaxpr(product)(x, placed))  # where a kernel can run
    close(jit(product)(x, placed), jit(product)(x, leaf))
    on_one = jm.shard(leaf, jm.shardings(leaf, jm.mesh(), {"": P()}))
    assert not isinstance(on_one, ShardedArray)


def test_experts_stay_where_they_lie():
    stack = INT4.encode(jax.random.normal(jax.random.key(0), (4, 32, 24)))
    x = jax.random.normal(jax.random.key(1), (4, 8, 32))
    placed = jm.shard(stack, jm.shardings(stack, jm.mesh(expert=4), {"": P("expert")}))
    assert isinstance(placed, ShardedArray)
    program = jit(jm.lift(lambda w, x: jnp.einsum("ebk,ekn->ebn", x, w)))
    close(program(placed, x), program(stack, x))
    assert not cost_analysis.collective_bytes(
        hlo.read(program.lower(placed, x).compile().as_text())
    )


@pytest.mark.parametrize(
    "codec, spec, whole, cost",
    [
        (INT4, P("fsdp"), (0,), 7 / 8),  # 8 inputs of a device are half a group
        (INT4, P(None, "fsdp"), (), 0),
        (jm.Int(3), P(None, "fsdp"), (1,), 7 / 8),  # 12 outputs of one bit are 1.5 bytes
        (jm.Int(4), P("fsdp"), (), 0.06),  # a scale for each row is on every device
        (jm.Planes(group=8), P("fsdp"), (), 0),
        (jm.NM(2, 4), P("fsdp"), (), 0),
        (jm.NM(2, 16), P("fsdp"), (0,), 7 / 8),  # 8 inputs of a device are half a block
        (jm.Bitmask(0.5), P("fsdp"), (0,), 7 / 8),
    ],
    ids=str,
)
def test_no_group_and_no_byte_is_split_and_the_table_says_what_that_costs(codec, spec, whole, cost):
    leaf = jax.eval_shape(codec.encode, jax.ShapeDtypeStruct((64, 96), jnp.float32))
    (row,) = jm.placement({"w": leaf}, jm.mesh(fsdp=8), {"w": spec}).rows
    assert row.whole == whole and row.per_device == row.least + row.cost
    assert cost == row.cost if not cost else 0 < row.cost <= cost * row.nbytes


def test_what_does_not_divide_is_refused_by_name():
    tree = {"w": jnp.ones((6, 4)), "e": INT4.encode(jnp.ones((32, 20)))}
    mesh = jm.mesh(fsdp=8)
    for rules, message in (
        ({"v": P()}, "rule 'v' matches no leaf"),
        ({"w": P(None, None, "fsdp")}, "w has shape (6, 4), too few axes"),
        ({"w": P("fsdp")}, "w has shape (6, 4): .* cuts 6 in 8"),
        ({"e": P(None, "fsdp")}, "e has shape (32, 20): .* cuts 20 in 8"),
        ({"w": P("model")}, "names the axis 'model', expected one of"),
        ({"w": P("fsdp", "fsdp")}, "names the axis 'fsdp', twice"),
    ):
        with pytest.raises(ValueError, match=message.replace("(", r"\(").replace(")", r"\)")):
            jm.shardings(tree, mesh, rules)


def test_a_mesh_larger_than_the_devices_is_refused():
    with pytest.raises(ValueError, match=r"fsdp=4, tensor=3 takes 12 devices, there are 8"):
        jm.mesh(fsdp=4, tensor=3)
    with pytest.raises(ValueError, match="takes 16 devices, there are 8"):
        jm.mesh(fsdp=16, device="tpu v5e:2x4")
    with pytest.raises(ValueError, match="data=0, expected at least 1"):
        jm.mesh(data=0)


@pytest.mark.parametrize(
    "tree, message",
    [
        ({"w": 1.0, "v": 1.0}, "they differ at 'v'"),
        ({}, "they differ at 'w'"),
        ({"w": INT4.encode(jnp.ones((32, 16)))}, "a leaf is encoded otherwise"),
    ],
)
def test_shardings_of_another_tree_are_refused(tree, message):
    places = jm.shardings({"w": jnp.ones((32, 16))}, jm.mesh(fsdp=8), {"w": P("fsdp")})
    with pytest.raises(ValueError, match=f"shardings of another tree: {message}"):
        jm.shard(tree, places)


@functools.cache
def train(kind):
    """(losses of three steps of Adam on the dense model, the state of Adam)."""
    model, _, ids, _ = tiny()
    optimizer = optax.adam(1e-2)
    params, state = model.params, jit(optimizer.init)(model.params)
    if kind:
        layout, axes = MESHES[kind]
        mesh = jm.mesh(**axes)
        places = jm.shardings(params, mesh, layout(model.config, mesh))
        state = jm.shard(state, jm.state_shardings(state, params, places))
        params = jm.shard(params, places)

    def loss(params, ids):
        log_probs = jax.nn.log_softmax(model.apply(params, ids)[:, :-1])
        return -jnp.take_along_axis(log_probs, ids[:, 1:, None], -1).mean()

    @jit
    def step(params, state, ids):
        value, gradient = jax.value_and_grad(loss)(params, ids)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    losses = []
    for _ in range(3):
        with jax.numpy_dtype_promotion("standard"):  # optax counts its steps in int32
            params, state, value = step(params, state, ids)
        losses.append(float(value))
    return losses, state


@pytest.mark.parametrize("kind", [pytest.param("fsdp", marks=pytest.mark.slow), "fsdp_tensor"])
def test_training_sharded_is_training(kind):
    losses, state = train(kind)
    np.testing.assert_allclose(losses, train(None)[0], rtol=1e-5)
    mu = state[0].mu["layers"]["mlp"]["up"]["kernel"]
    assert mu.addressable_shards[0].data.size == mu.size // len(mu.sharding.device_set)


def test_the_state_of_a_sharded_weight_lies_with_it():
    params = {"a": {"w": jnp.ones((8, 4))}, "w": jm.Fake(jm.Int(4)).encode(jnp.ones((16, 8)))}
    places = jm.shardings(params, jm.mesh(fsdp=8), {"a/w": P("fsdp"), "w": P(None, "fsdp")})
    state = jax.eval_shape(optax.chain(optax.clip(1.0), optax.adamw(1e-3)).init, params)
    adam = jm.state_shardings(state, params, places)[1][0]
    assert adam.mu == adam.nu == places and adam.count.spec == P()
    rows = jm.state_shardings({"v": {"a": {"w": jnp.ones(8)}}}, params, places)
    assert rows["v"]["a"]["w"].spec == P()  # its shape is not the weight's


def test_second_derivatives_through_sharded_layers_are_those_of_the_decoded_weights():
    draw = lambda i, *shape: jax.random.normal(jax.random.key(i), shape)
    enc = {"w": jm.Int(4, group=8).encode(draw(0, 2, 16, 16) / 4)}
    mesh = jm.mesh(fsdp=2, tensor=2)
    placed = jm.shard(enc, jm.shardings(enc, mesh, {"w": P(None, "fsdp", "tensor")}))
    layer = lambda x, w: (jnp.tanh(x @ w), None)
    loss = lambda p, x: (jax.lax.scan(layer, x, p["w"])[0] ** 2).sum()
    along = lambda fn: lambda p, x, v: jax.jvp(jax.grad(lambda x: fn(p, x)), (x,), (v,))[1]
    x, v = draw(1, 4, 16), draw(2, 4, 16)
    close(jit(along(jm.lift(loss)))(placed, x, v), along(loss)(jm.decode(enc), x, v))
