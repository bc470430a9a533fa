"""Bytes of a divergence from a teacher's states, by a TPU's compiler: distillation_loss.json.

    pip install -e ".[tpu]"
    python experiments/memory/distillation_loss.py

8,192 tokens, a student of width 2,048 and a teacher of width 4,096, both with a head of 128,256
ids, in bfloat16; forward and backward. "chunk" is `jm.train.chunked`, "tile" is
`jm.train.tiled_divergence`. The gradients are those of the student's hidden states, and of its head
if the row says so. `temp_bytes` are what the program takes beside its arguments and its results,
and `one_chunk_bytes` the logits of 512 tokens of one model. Nothing is run. A row that is in the
file is not compiled again.
"""

import json
import pathlib

import jax
import jax.numpy as jnp

import jaxmem as jm
from jaxmem.io.atomic import write_whole

PATH = pathlib.Path(__file__).with_suffix(".json")
DEVICE, TOKENS, VOCAB, WIDTHS = "tpu v5e:1x1", 8192, 128_256, (2048, 4096)
ROWS = {
    "tile 1,336": ("tile", 1336, 1),
    "tile 1,336, head": ("tile", 1336, 2),
    "chunk 512": ("chunk", 512, 1),
    "chunk 512, head": ("chunk", 512, 2),
}


def measure(way: str, size: int, gradients: int) -> dict:
    """The row of one way, with gradients of the first `gradients` arguments."""

    def loss(x, head, teacher_x, teacher_head):
        sides = jm.train.Logits(x, head, axis=1), jm.train.Logits(teacher_x, teacher_head, axis=1)
        if way == "tile":
            return jm.train.tiled_divergence(*sides, tile=size).mean()
        return jm.train.chunked(jm.train.teacher_divergence(), sides, chunk=size).mean()

    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.bfloat16)
    step = jax.value_and_grad(loss, tuple(range(gradients)))
    sides = [x for width in WIDTHS for x in (shape(1, TOKENS, width), shape(VOCAB, width))]
    m = jm.memory(step, *sides, device=DEVICE)
    return {
        "compiled": m.exact,
        "temp_bytes": m.temp,
        "one_chunk_bytes": 512 * VOCAB * 4,
        "peak_bytes": m.peak,
        "flops": m.flops,
        "traffic_bytes": m.traffic,
        "program": m.hash,
        "versions": m.versions,
    }


def main() -> None:
    results = {
        "command": "python experiments/memory/distillation_loss.py",
        "jax": jax.__version__,
        "backend": f"{DEVICE}, compiled and not run",
        "seed": None,
        "model": "shapes only: 8,192 tokens of 2,048 and of 4,096, heads of 128,256",
        "rows": json.loads(PATH.read_text())["rows"] if PATH.exists() else {},
    }
    for name, row in ROWS.items():
        if name not in results["rows"]:
            results["rows"][name] = measure(*row)
            print(name, results["rows"][name], flush=True)
            write_whole(PATH, (json.dumps(results, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
