"""Training over devices and processes: tests/parallel/test_processes.py calls it or runs it."""

import json
import os
import pathlib
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from cheap_jit import jit
from jax.sharding import PartitionSpec as P

import jaxmem as jm

VOCAB, WIDTH, ROWS, LENGTH = 64, 32, 8, 16
RULES = {
    "(.*/)?table": P(("tensor", "fsdp")),
    "(.*/)?frozen": P(None, ("tensor", "fsdp")),
    "(.*/)?free": P("fsdp", "tensor"),
}
OPTIMIZER = optax.adam(1e-2)


def apply(params, ids):
    """Logits of a model with an encoded table and layer, and a layer beside it to train."""
    x = params["table"][ids]
    x = jnp.tanh(x @ params["frozen"] + x @ params["free"])
    return x @ params["table"].T


def start():
    keys = jax.random.split(jax.random.key(0), 3)
    w = lambda key, *shape: jax.random.normal(key, shape) / 8
    params = {"table": w(keys[0], VOCAB, WIDTH), "frozen": w(keys[1], WIDTH, WIDTH)}
    params = {
        "table": jm.Int(8).encode(params["table"], (-1,)),
        "frozen": jm.Int(4, group=16).encode(params["frozen"]),
        "free": w(keys[2], WIDTH, WIDTH),
    }
    return {"params": params, "state": OPTIMIZER.init({"free": params["free"]}), "step": 0}


def places(tree, mesh):
    """Where the arrays of what `start` gave lie."""
    params = tree["params"]
    where = jm.shardings(params, mesh, RULES)
    free = {"free": params["free"]}, {"free": where["free"]}
    step = jax.tree.leaves(jm.shardings({"": jnp.ones(())}, mesh, {}))[0]
    return {"params": where, "state": jm.state_shardings(tree["state"], *free), "step": step}


def batch(step):
    return np.random.default_rng(step).integers(0, VOCAB, (ROWS, LENGTH)).astype(np.int32)


@jit
def step(params, state, ids):
    def loss(free):
        scores = jax.nn.log_softmax(jm.lift(apply)(params | free, ids)[:, :-1])
        return -jnp.take_along_axis(scores, ids[:, 1:, None], -1).mean()

    value, slope = jax.value_and_grad(loss)({"free": params["free"]})
    updates, state = OPTIMIZER.update(slope, state)
    return params | optax.apply_updates({"free": params["free"]}, updates), state, value


def train(here, first, last):
    """(what comes after steps [first, last), their losses)."""
    losses = []
    for i in range(first, last):
        with jax.numpy_dtype_promotion("standard"):  # optax counts its steps in int32
            params, state, value = step(here["params"], here["state"], batch(i))
        here = here | {"params": params, "state": state}
        losses.append(float(value))
    return here, losses


def perplexity(here):
    ids = batch(2**31).reshape(-1)
    how = dict(window=LENGTH, batch=ROWS)
    return jm.evaluate(jm.lift(apply), here["params"], ids, **how).perplexity.mean


def refused(fn):
    try:
        fn()
    except ValueError as error:
        return str(error)
    return None


def main(path, address, count, index, axes, half, steps) -> None:
    """Trains, saves at `half`, and is killed in the save at the end, the last process first."""
    jax.distributed.initialize(address, count, index)
    mesh = jm.mesh(**axes)
    here = start()
    here = jm.shard(here, places(here, mesh))
    here, losses = train(here, 0, half)
    jm.save(path, here)
    frozen = here["params"]["frozen"]
    found = {
        "losses": losses,
        "perplexity": perplexity(here),
        "share": sum(a.addressable_shards[0].data.nbytes for a in jax.tree.leaves(frozen)),
        "of": jm.nbytes(frozen),
        "small_mesh": refused(lambda: jm.mesh(fsdp=jax.local_device_count())),
        "large_mesh": refused(lambda: jm.mesh(fsdp=64)),
        "other_trees": refused(lambda: jm.save(f"{path}.other", {"w": np.ones(1 + index)})),
    }
    if index == 0:
        pathlib.Path(f"{path}.json").write_text(json.dumps(found))
    here, _ = train(here, half, steps)
    if index == count - 1:
        os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)  # its pieces written, no head
    jm.save(path, here)


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(json.loads, sys.argv[3:]))
