"""Bytes of a file of `jm.save(compress=True)`, which loses nothing: writes compressed.json.

    pip install -e ".[demo]"
    python experiments/memory/compressed.py

The trees are SmolLM2 in bfloat16 as it is and rotated (its weights were rounded to four bits once,
which the rotation hides), MiniLM in float32 (never rounded), and the rotated SmolLM2 in packed
integers. `share` is the file's bytes over those of a file that is not compressed. Each file is
loaded, and every bit is compared. Seconds are of one core.
"""

import hashlib
import json
import os
import pathlib
import tempfile
import time

import jax
import jax.numpy as jnp

import jaxmem as jm
from jaxmem import models
from jaxmem.models import downloading


def measure(tree: dict, folder: pathlib.Path) -> dict:
    plain_path, compressed_path = folder / "plain.jm", folder / "small.jm"
    jm.save(plain_path, tree)
    start = time.perf_counter()
    jm.save(compressed_path, tree, compress=True)
    saved_at = time.perf_counter()
    read_back = jax.block_until_ready(jm.load(compressed_path))
    loaded_at = time.perf_counter()
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(read_back), strict=True)
    if any(jax.device_get(a).tobytes() != jax.device_get(b).tobytes() for a, b in pairs):
        raise ValueError("a file was not read back as it was written")
    plain_bytes, compressed_bytes = plain_path.stat().st_size, compressed_path.stat().st_size
    return {
        "file_bytes": plain_bytes,
        "compressed_bytes": compressed_bytes,
        "share": round(compressed_bytes / plain_bytes, 4),
        "save_seconds": round(saved_at - start, 2),
        "load_seconds": round(loaded_at - saved_at, 2),
    }


def main() -> None:
    smollm2, minilm = models.load("smollm2-135m"), models.load("minilm-l6")
    rotated = models.rotate(smollm2)
    to_bfloat16 = lambda tree: jax.tree.map(lambda a: a.astype(jnp.bfloat16), tree)
    four_bits = {r"layers/.*kernel": jm.Int(4, group=64, symmetric=False)}
    trees = {
        "SmolLM2, bfloat16": lambda: to_bfloat16(smollm2.params),
        "SmolLM2 turned, bfloat16": lambda: to_bfloat16(rotated.params),
        "MiniLM, float32": lambda: minilm.params,
        "SmolLM2 turned, its blocks in 4 bits g64, the rest in bfloat16": lambda: jm.encode(
            to_bfloat16(rotated.params), jm.choose(rotated.params, four_bits)
        ),
    }
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, tree in trees.items():
            rows.append({"tree": name} | measure(tree(), pathlib.Path(folder)))
            print(rows[-1], flush=True)
    results = {
        "command": "python experiments/memory/compressed.py",
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "cores": len(os.sched_getaffinity(0)),
        "seed": 0,
        "sha256": {
            name: hashlib.sha256(downloading.fetch(name).read_bytes()).hexdigest()
            for name in ("smollm2-135m", "minilm-l6")
        },
        "rows": rows,
    }
    path = pathlib.Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
