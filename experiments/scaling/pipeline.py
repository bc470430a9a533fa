"""A pipeline of 4 stages against one device: results, ticks, bubble and bytes, with formulas.

    python experiments/scaling/pipeline.py

The figures go into pipeline.json. The model is a frozen Llama of 8 layers and width 256 in 4 bits,
with LoRA pairs of rank 4 to train. Micro-batches are 2 rows of 64 ids, on 4 virtual CPU devices.
Ticks are counted in the compiled program: one for each time that it passes activations on. The
bubble is computed from the stages that work in each tick: a forward pass takes one unit of time, a
backward pass, which runs the stage again, takes three. A row that is in the file already is not
measured again.
"""

import json
import os
import pathlib

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

import jaxmem as jm
from jaxmem.adapters.lora import adapters, attach
from jaxmem.architectures import llama
from jaxmem.compiler import hlo
from jaxmem.io.atomic import write_whole
from jaxmem.models import Model

STAGES, ROWS, LENGTH, SEED = 4, 2, 64, 0
FORWARD_TIME, BACKWARD_TIME = 1, 3
CONFIG = llama.Config(
    vocab=512, width=256, ffn=640, layers=8, heads=4, kv_heads=4, head_dim=64, tied=True
)
MICRO_BATCHES = (4, 8, 16)


def stage_work(schedule, stage, tick, micro):
    """Units of time that a stage is busy in a tick, by the rules of `parallel/pipeline.py`."""
    if schedule == "gpipe":  # all forward ticks; the backward ticks are their mirror image
        busy = 0 <= tick - stage < micro
        return FORWARD_TIME * busy
    forward, backward = tick - stage, tick - 2 * (STAGES - 1) + stage
    return FORWARD_TIME * (0 <= forward < micro) + BACKWARD_TIME * (0 <= backward < micro)


def bubble(schedule, micro, ticks):
    """The share of time that stages wait: a tick lasts as long as its busiest stage."""
    works = lambda tick: [stage_work(schedule, stage, tick, micro) for stage in range(STAGES)]
    duration = sum(max(works(tick)) for tick in range(ticks))
    busy = sum(sum(works(tick)) for tick in range(ticks))
    return 1 - busy / (STAGES * duration)


def relative_error(actual, expected):
    """The largest difference of two trees, relative to the largest number of each array."""
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(expected))
    return max(float(jnp.abs(a - b).max() / jnp.abs(b).max()) for a, b in pairs)


def count_ticks(program):
    """The number of times that a compiled program passes activations to the next stage."""
    passes = [
        times
        for _, op, times in hlo.read(program.as_text()).walk()
        if op.kind.removesuffix("-start") == "collective-permute"
    ]
    return max(passes)


def main() -> None:
    path = pathlib.Path(__file__).with_suffix(".json")
    results = {
        "command": "python experiments/scaling/pipeline.py",
        "jax": jax.__version__,
        "backend": f"{jax.default_backend()}, {STAGES} virtual devices",
        "seed": SEED,
        "stages": STAGES,
        "layers": CONFIG.layers,
        "rows": [],
    }
    if path.exists():
        results["rows"] = json.loads(path.read_text())["rows"]
    ids = jnp.zeros((1, 4), jnp.int32)
    params = jax.jit(llama.module(CONFIG).init)(jax.random.key(SEED), ids)["params"]
    model = Model(CONFIG, params, None, "small")
    plan = jm.choose(params, {".*kernel": jm.Int(4, group=64), ".*embedding": jm.Int(8)})
    encoded = jm.encode(params, plan, uses=jm.uses(model.apply, params, ids))
    pairs = adapters(jax.random.key(SEED + 1), encoded, 4, "layers/.*kernel")
    pairs = jax.tree.map(lambda a: a + 0.01, pairs)

    def loss(pairs, params, ids):
        scores = jax.nn.log_softmax(model.apply(attach(params, pairs), ids)[:, :-1])
        return -jnp.take_along_axis(scores, ids[:, 1:, None], -1).mean()

    mesh = jm.mesh(stage=STAGES)
    rules = {"(.*/)?layers/.*": P("stage")}
    place = lambda tree: jm.shard(tree, jm.shardings(tree, mesh, rules))
    placed, placed_pairs = place(encoded), place(pairs)
    table = jm.placement(encoded, mesh, rules)
    stacks = [row for row in table.rows if row.path.startswith("layers/")]
    activation_bytes = ROWS * LENGTH * CONFIG.width * 4
    for micro in MICRO_BATCHES:
        ids = jax.random.randint(jax.random.key(micro), (ROWS * micro, LENGTH), 0, CONFIG.vocab)
        expected = None
        for schedule in ("gpipe", "1f1b"):
            key = {"schedule": schedule, "micro_batches": micro}
            if any(key.items() <= row.items() for row in results["rows"]):
                continue
            expected = expected or jax.jit(jax.value_and_grad(loss))(pairs, encoded, ids)
            forward = jax.jit(jm.pipelined(model.apply, mesh, micro=micro))
            forward = forward.lower(placed, ids).compile()
            gpipe = jax.value_and_grad(jm.pipelined(loss, mesh, micro=micro))
            step = gpipe if schedule == "gpipe" else jm.one_f_one_b(loss, mesh, micro=micro)
            step = jax.jit(step).lower(placed_pairs, placed, ids).compile()
            ticks, sizes = count_ticks(step), step.memory_analysis()
            kept_inputs = micro + STAGES - 1 if schedule == "gpipe" else min(micro, 2 * STAGES - 1)
            row = key | {
                "forward_error": relative_error(
                    forward(placed, ids), jax.jit(model.apply)(encoded, ids)
                ),
                "loss_and_gradient_error": relative_error(
                    step(placed_pairs, placed, ids), expected
                ),
                "ticks": ticks,
                "ticks_formula": micro + (STAGES - 1) * (1 if schedule == "gpipe" else 2),
                "bubble": round(bubble(schedule, micro, ticks), 6),
                "bubble_formula": round((STAGES - 1) / (micro + STAGES - 1), 6),
                "stack_bytes_a_stage": sum(row.per_device for row in stacks),
                "stack_bytes_formula": sum(row.nbytes for row in stacks) // STAGES,
                "argument_bytes_a_stage": sizes.argument_size_in_bytes,
                "temp_bytes_a_stage": sizes.temp_size_in_bytes,
                "micro_batches_held_formula": kept_inputs,
                "bytes_held_formula": kept_inputs * activation_bytes,
            }
            print(row, flush=True)
            results["rows"].append(row)
            write_whole(path, (json.dumps(results, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
