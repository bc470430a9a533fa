"""A mixture of experts, unmodified linen, with its encoded experts over many devices."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from cheap_jit import jit
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxmem as jm
from jaxmem.compiler import hlo

EXPERTS, LAYERS, WIDTH = 4, 2, 32
CODEC = jm.Int(4, group=16)


class Expert(nn.Module):
    @nn.compact
    def __call__(self, x):
        up, down = nn.Dense(2 * WIDTH, name="up"), nn.Dense(WIDTH, name="down")
        return down(nn.silu(up(x)))


class Mixture(nn.Module):
    """Each token goes to its likeliest expert (Fedus et al., 2021); an expert can take them all."""

    @nn.compact
    def __call__(self, x, _):
        tokens = x.reshape(-1, WIDTH)
        gates = nn.softmax(nn.Dense(EXPERTS, name="router")(tokens))
        chosen = jax.nn.one_hot(gates.argmax(-1), EXPERTS, dtype=jnp.int32)
        position = (chosen.cumsum(0) * chosen).sum(-1) - 1
        places = jax.nn.one_hot(position, len(tokens), dtype=jnp.int32)
        dispatch = (chosen[:, :, None] * places[:, None]).astype(x.dtype)
        axes = dict(variable_axes={"params": 0}, split_rngs={"params": True})
        experts = nn.vmap(Expert, **axes, axis_size=EXPERTS)(name="experts")
        out = experts(jnp.einsum("td,tec->ecd", tokens, dispatch))
        y = jnp.einsum("ecd,tec,te->td", out, dispatch, gates)
        return x + y.reshape(x.shape), None


class LM(nn.Module):
    @nn.compact
    def __call__(self, x):
        axes = dict(variable_axes={"params": 0}, split_rngs={"params": True})
        layers = nn.scan(Mixture, **axes, length=LAYERS)(name="layers")
        return layers(x, None)[0]


def test_experts_lie_over_devices_and_none_is_gathered_from_another():
    x = jax.random.normal(jax.random.key(0), (4, 8, WIDTH))
    params = jit(LM().init)(jax.random.key(1), x)
    uses = jm.uses(LM().apply, params, x)
    enc = jm.encode(params, jm.choose(params, {".*experts/.*kernel": CODEC}), uses=uses)
    lifted, mesh = jm.lift(LM().apply, on_decode="error"), jm.mesh(fsdp=2, expert=4)
    rules = jm.layouts.expert(".*experts/.*bias")
    rules |= {".*experts/.*kernel": P(None, "expert", None, "fsdp")}
    placed = jm.shard(enc, jm.shardings(enc, mesh, rules))
    up = placed["params"]["layers"]["experts"]["up"]
    assert up["bias"].addressable_shards[0].data.shape == (LAYERS, 1, 2 * WIDTH)
    for row in jm.report(params, placed).rows:
        assert row.cost == 0 or "router" in row.path or "bias" in row.path
    rows = jax.device_put(x, NamedSharding(mesh, P("fsdp")))
    program = jit(lifted).lower(placed, rows).compile()
    expected = jit(lifted)(enc, x)
    assert float(jnp.abs(program(placed, rows) - expected).max() / jnp.abs(expected).max()) < 1e-5
    ops = [
        op for _, op, _ in hlo.read(program.as_text()).walk() if op.kind.startswith("all-gather")
    ]
    codes = [shape for op in ops for kind, shape in hlo.dims(op.type) if kind == "u8"]
    # Over fsdp, a device gathers the codes of its one expert.
    assert codes and all(shape[0] == 1 for shape in codes)


def test_the_experts_of_each_layer_are_one_weight_that_rules_divide():
    w = jax.ShapeDtypeStruct((LAYERS, EXPERTS, WIDTH, 2 * WIDTH), jnp.float32)
    leaf = jax.eval_shape(CODEC.encode, w)
    (row,) = jm.placement({"w": leaf}, jm.mesh(expert=4), jm.layouts.expert("w")).rows
    assert row.cost == 0 and row.per_device * EXPERTS == row.nbytes
