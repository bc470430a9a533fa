"""One of the processes of a training run: tests/training/test_run_in_processes.py runs it."""

import json
import pathlib
import sys

import jax
import numpy as np

import jaxmem as jm
from jaxmem.architectures import llama

CONFIG = llama.Config(vocab=32, width=16, ffn=24, layers=2, heads=2, kv_heads=2, head_dim=8)
TEXT = np.tile(np.arange(16), 40)


def run(out, count=1, index=0):
    """The losses of a run of 4 steps in `count` processes."""
    model = jm.training.fresh(jm.models.Model(CONFIG, llama.module(CONFIG), None, "tiny"))
    rows = jm.data.PackedRows([TEXT], 16, longer="split")
    batches = jm.data.Batches(rows, 4, shard=(index, count))
    recipe = jm.Recipe("tiny", "cpu", "train", 4, 16, mesh={"fsdp": 2}, chunk=16, packed=True)
    options = jm.training.TrainingOptions(4, learning_rate=0.02, save_every=2)
    made = jm.training.run(model, batches, recipe, out=out, options=options)
    return [row["loss"] for row in made.history]


if __name__ == "__main__":
    out, address, count, index = sys.argv[1:]
    jax.distributed.initialize(address, int(count), int(index))
    losses = run(out, int(count), int(index))
    pathlib.Path(f"{out}.{index}.json").write_text(json.dumps(losses))
