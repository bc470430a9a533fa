"""LoRA steps of llama-8b in 4 bits on one TPU v5e, compiled to the end: lora_tpu.json.

    pip install -e ".[demo,tpu]"
    python experiments/memory/lora_tpu.py

Steps have 8 x 2,048 tokens and pairs of rank 16 beside all kernels of the layers. The compiler
schedules for 9.5 GiB. Nothing is run. A row that is in the file already is not compiled again.
"""

import hashlib
import json
import pathlib
import time

import jax

import jaxmem as jm
from jaxmem.io.atomic import write_whole

PATH = pathlib.Path(__file__).with_suffix(".json")
DEVICE, LIMIT = "tpu v5e:1x1", int(9.5 * 2**30)
FULL = jm.Remat("full")
ROWS = {
    "lora, int4": dict(encoding=jm.Int(4), micro=8, chunk=128, remat=FULL),
    "dora, int4": dict(encoding=jm.Int(4), micro=8, chunk=128, remat=FULL, adapter="dora"),
    "lora, int4 in groups of 64": dict(
        encoding=jm.Int(4, group=64), micro=8, chunk=128, remat=FULL
    ),
}


def row(knobs: dict) -> dict:
    """What the compiler says of a step."""
    recipe = jm.Recipe("llama-8b", DEVICE, "lora", 8, 2048, **knobs)
    start, built = time.perf_counter(), jm.build(recipe)
    m = jm.memory(built.step, *built.arguments, device=DEVICE, limit=LIMIT, timeout=5400)
    return {
        "recipe": json.loads(recipe.to_json()),
        "peak_bytes": m.peak,
        "argument_bytes": m.arguments,
        "temp_bytes": m.temp,
        "fits": m.fits,
        "exact": m.exact,
        "program": m.hash,
        "versions": m.versions,
        "seconds_to_compile": time.perf_counter() - start,
    }


def main() -> None:
    config = json.dumps(jm.models.load("llama-8b").config.to_dict(), sort_keys=True)
    results = {
        "command": "python experiments/memory/lora_tpu.py",
        "jax": jax.__version__,
        "backend": "a TPU target, compiled and not run",
        "seed": None,
        "config_sha256": hashlib.sha256(config.encode()).hexdigest(),
        "limit_bytes": LIMIT,
        "rows": json.loads(PATH.read_text())["rows"] if PATH.exists() else {},
    }
    for name, knobs in ROWS.items():
        if name not in results["rows"]:
            results["rows"][name] = row(knobs)
            write_whole(PATH, (json.dumps(results, indent=1) + "\n").encode())
        found = results["rows"][name]
        print(name, f"{found['peak_bytes'] / 2**30:.2f} GiB", found["fits"], flush=True)


if __name__ == "__main__":
    main()
