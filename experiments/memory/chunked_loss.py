"""Bytes of a loss of Gemma's shapes, forward and backward, by a TPU's compiler: chunked_loss.json.

    pip install -e ".[tpu]"
    python experiments/memory/chunked_loss.py

8,192 tokens of width 2,304 and a vocabulary of 256,000, in bfloat16, with logits capped at 30; the
gradients are those of the hidden states and of the head. `temp_bytes` are what the program takes
beside its arguments and its results: with chunks of positions among it the gradient of the head of
one chunk, which is as large as that of all tokens and is then added to it; with tiles of ids that
gradient is written once. Nothing is run. `whole` makes all logits at once, and does not fit. A row
that is in the file already is not compiled again.
"""

import json
import pathlib

import jax
import jax.numpy as jnp

import jaxmem as jm
from jaxmem.io.atomic import write_whole

PATH = pathlib.Path(__file__).with_suffix(".json")
DEVICE, TOKENS, WIDTH, VOCAB = "tpu v5e:1x1", 8192, 2304, 256_000
SIZES = {
    "chunk 64": {"chunk": 64},
    "chunk 128": {"chunk": 128},
    "chunk 256": {"chunk": 256},
    "whole": {"chunk": TOKENS},
    "tile 2048": {"tile": 2048},
}


def measure(size: dict) -> dict:
    """The row of a number of positions, or of ids, whose logits exist at a time."""
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.bfloat16)
    cap = lambda products: 30.0 * jnp.tanh(products / 30.0)
    loss = lambda x, head, ids: jm.train.next_token_loss(x, head, ids, axis=1, logits=cap, **size)
    ids = jax.ShapeDtypeStruct((1, TOKENS), jnp.int32)
    step = jax.value_and_grad(loss, (0, 1))
    m = jm.memory(step, shape(1, TOKENS, WIDTH), shape(VOCAB, WIDTH), ids, device=DEVICE)
    return {
        "compiled": m.exact,
        "temp_bytes": m.temp,
        "peak_bytes": m.peak,
        "head_gradient_bytes": VOCAB * WIDTH * 2,
        "flops": m.flops,
        "traffic_bytes": m.traffic,
        "program": m.hash,
        "versions": m.versions,
    }


def main() -> None:
    results = {
        "command": "python experiments/memory/chunked_loss.py",
        "jax": jax.__version__,
        "backend": f"{DEVICE}, compiled and not run",
        "seed": None,
        "model": "shapes only: 8,192 tokens of 2,304, head of 256,000",
        "rows": json.loads(PATH.read_text())["rows"] if PATH.exists() else {},
    }
    for name, size in SIZES.items():
        if name not in results["rows"]:
            results["rows"][name] = measure(size)
            print(name, results["rows"][name], flush=True)
            write_whole(PATH, (json.dumps(results, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
