"""A pipeline gives what its layers give in sequence, forward and backward."""

import functools

import jax
import jax.numpy as jnp
import pytest
from cheap_jit import jit
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxmem as jm
from jaxmem.adapters.lora import adapters, attach
from jaxmem.architectures import bert, llama
from jaxmem.models import Model

SCHEDULES = {
    "gpipe": lambda loss, mesh, micro: jax.value_and_grad(jm.pipelined(loss, mesh, micro=micro)),
    "1f1b": jm.one_f_one_b,
}
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES)


def close(got, want, limit=1e-5):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
        assert float(jnp.abs(a - b).max()) <= limit * float(jnp.abs(b).max()), a.shape


def staged(tree, mesh):
    return jm.shard(tree, jm.shardings(tree, mesh, {"(.*/)?layers/.*": P("stage")}))


@functools.cache
def stack(layers=4, width=16):
    """(params, a loss that uses weights before, in and after a stack of layers)."""
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "first": jax.random.normal(keys[0], (width, width)) / 4,
        "layers": {"w": jax.random.normal(keys[1], (layers, width, width)) / 4},
        "last": jax.random.normal(keys[2], (width, width)) / 4,
    }

    def loss(params, batch):
        x = jnp.sin(batch["x"] @ params["first"])
        mask = batch["x"] > 0  # every layer reads this part of the batch
        body = lambda x, w: (jnp.tanh(jnp.where(mask, x @ w, x)), None)
        x = lax.scan(body, x, params["layers"]["w"])[0]
        return ((x @ params["last"] - batch["y"]) ** 2).mean() + (params["first"] ** 2).sum()

    return params, loss


def batch(rows, width=16):
    x = jax.random.normal(jax.random.key(1), (2, rows, width))
    return {"x": x[0], "y": x[1]}


@each_schedule
@pytest.mark.parametrize("axes", [dict(stage=4), dict(stage=2, data=2)], ids=str)
def test_loss_and_gradient_are_those_of_the_sequence(schedule, axes):
    (params, loss), mesh, rows = stack(), jm.mesh(**axes), batch(12)
    step = SCHEDULES[schedule](loss, mesh, micro=3)
    value, gradient = jit(step)(staged(params, mesh), rows)
    close((value, gradient), jit(jax.value_and_grad(loss))(params, rows))
    assert gradient["layers"]["w"].sharding.is_equivalent_to(NamedSharding(mesh, P("stage")), 3)


@functools.cache
def model():
    """(a small Llama, its params in 4 bits, LoRA pairs to train, a loss of the pairs)."""
    config = llama.Config(
        vocab=64, width=32, ffn=64, layers=4, heads=2, kv_heads=2, head_dim=16, tied=True
    )
    ids = jnp.zeros((1, 4), jnp.int32)
    params = jit(llama.module(config).init)(jax.random.key(0), ids)["params"]
    net = Model(config, params, None, "tiny")
    # Few weights are encoded, because products with encoded weights take long to compile.
    plan = jm.choose(params, {".*(up|out)/kernel": jm.Int(4, group=16), ".*embedding": jm.Int(8)})
    uses = jm.uses(net.apply, params, ids)
    enc = jit(lambda params: jm.encode(params, plan, uses=uses))(params)
    pairs = adapters(jax.random.key(1), enc, 2, "layers/mlp/up/kernel")
    pairs = jax.tree.map(lambda a: a + 0.01, pairs)

    def loss(pairs, params, ids):
        scores = jax.nn.log_softmax(net.apply(attach(params, pairs), ids)[:, :-1])
        return -jnp.take_along_axis(scores, ids[:, 1:, None], -1).mean()

    return net, enc, pairs, loss


def tokens(rows):
    return jax.random.randint(jax.random.key(2), (rows, 8), 0, 64)


def test_an_encoded_model_runs_through_it_each_stage_with_its_own_layers():
    (net, enc, _, _), mesh, ids = model(), jm.mesh(stage=4), tokens(4)
    placed = staged(enc, mesh)
    close(jit(jm.pipelined(net.apply, mesh, micro=2))(placed, ids), jit(net.apply)(enc, ids))
    for whole, part in zip(*map(jax.tree.leaves, (enc["layers"], placed["layers"]))):
        assert part.addressable_shards[0].data.shape == (1, *whole.shape[1:])


@functools.cache
def loss_and_gradient():
    """The loss of the encoded model in sequence, and its gradient for the adapters."""
    _, enc, pairs, loss = model()
    return jit(jax.value_and_grad(loss))(pairs, enc, tokens(4))


@each_schedule
def test_adapters_of_an_encoded_model_learn_in_it(schedule):
    (_, enc, pairs, loss), mesh = model(), jm.mesh(stage=2)
    step = SCHEDULES[schedule](loss, mesh, micro=4)
    close(jit(step)(staged(pairs, mesh), staged(enc, mesh), tokens(4)), loss_and_gradient())


@pytest.mark.slow
def test_a_mask_goes_with_its_rows():
    config = bert.Config(vocab=64, width=32, ffn=48, layers=2, heads=2)
    ids, mask = tokens(6), jnp.arange(8)[None] < jnp.arange(3, 9)[:, None]
    params = jit(bert.module(config).init)(jax.random.key(0), ids, mask)["params"]
    run = lambda params, batch: bert.module(config).apply({"params": params}, *batch)
    piped = jit(jm.pipelined(run, jm.mesh(stage=2), micro=3))
    close(piped(params, (ids, mask)), jit(run)(params, (ids, mask)))


def test_one_forward_one_backward_holds_no_more_for_more_micro_batches():
    (params, loss), mesh, temp_bytes = stack(width=64), jm.mesh(stage=2), {}
    for schedule, make in SCHEDULES.items():
        for micro in (4, 16):
            step = jit(make(loss, mesh, micro=micro))
            program = step.lower(staged(params, mesh), batch(64 * micro, 64)).compile()
            temp_bytes[schedule, micro] = program.memory_analysis().temp_size_in_bytes
    micro_batch = 64 * 64 * 4  # bytes of one micro-batch
    cut_batch = 12 * 2 * micro_batch  # both schedules copy x and y of the batch as they cut it
    assert temp_bytes["gpipe", 16] - temp_bytes["gpipe", 4] > cut_batch + 12 * micro_batch / 2
    assert temp_bytes["1f1b", 16] - temp_bytes["1f1b", 4] < cut_batch + 12 * micro_batch / 2


@pytest.mark.parametrize(
    "axes, micro, rows, message",
    [
        (dict(stage=3), 2, 8, r"\[4\] layers do not divide over 3 stages"),
        (dict(stage=2), 3, 8, "8 rows do not divide into 3 micro-batches, each over 1 devices"),
        (dict(stage=2, data=4), 2, 4, "4 rows do not divide into 2 micro-batches, each over 4"),
        (dict(stage=2, tensor=2), 2, 8, "a pipeline runs over stage and"),
    ],
)
def test_what_does_not_divide_is_refused(axes, micro, rows, message):
    params, loss = stack()
    with pytest.raises(ValueError, match=message):
        jm.pipelined(loss, jm.mesh(**axes), micro=micro)(params, batch(rows))


def test_a_function_without_layers_is_refused():
    mesh, x = jm.mesh(stage=2), jnp.ones((4, 4))
    with pytest.raises(ValueError, match="runs no scan, expected one over layers"):
        jm.pipelined(lambda w, x: x @ w, mesh, micro=2)(x, x)
    outputs = lambda w, x: lax.scan(lambda x, w: (x @ w, x.sum()), x, w)[0]
    with pytest.raises(ValueError, match="returns more than its carry"):
        jm.pipelined(outputs, mesh, micro=2)(jnp.ones((2, 4, 4)), x)
