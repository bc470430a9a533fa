"""Stored bytes of every sparse leaf, predicted, in memory and in a file: writes sparse_bytes.json.

    pip install -e ".[demo]"
    python experiments/memory/sparse_bytes.py

Each format keeps half, or 2 of 4, of a weight of 2,048 x 512, and stores it in f32, bfloat16, int8
and int4 (one scale for each row of what is kept). `decode_error` is the largest difference from
the weight as the mask leaves it (before rounding, for integers). The header is the bytes that the
file has beyond its arrays.
"""

import json
import pathlib
import tempfile

import jax
import jax.numpy as jnp

import jaxmem as jm

SHAPE, SEED = (2048, 512), 0
PATTERNS = {
    "Bitmask, 50 %": jm.Bitmask(0.5),
    "Csr, 50 %": jm.Csr(0.5),
    "Coo, 50 %": jm.Coo(0.5),
    "Blocks of 32 x 32, 50 %": jm.Blocks(0.5, block=(32, 32)),
    "NM 2:4": jm.NM(2, 4),
    "Permute NM 2:4": jm.Permute(jm.NM(2, 4)),
    "NM 4:8": jm.NM(4, 8),
    "the smallest, 50 %": jm.sparse(0.5),
    "the smallest, 2 %": jm.sparse(0.02),
}
VALUES = {
    "float32": (jnp.float32, None),
    "bfloat16": (jnp.bfloat16, None),
    "int8": (jnp.float32, jm.Int(8)),
    "int4": (jnp.float32, jm.Int(4)),
}


def row(pattern: str, values: str, folder: pathlib.Path) -> dict:
    """Bytes and decode error of one pattern with one format of its values."""
    dtype, integers = VALUES[values]
    w = jax.random.normal(jax.random.key(SEED), SHAPE).astype(dtype)
    codec = PATTERNS[pattern]
    encode = (lambda w: codec.encode(w).map(integers.encode)) if integers else codec.encode
    leaf = jax.jit(encode)(w)
    remaining = jax.jit(lambda w: codec.encode(w).decode())(w)
    f32 = lambda a: a.astype(jnp.float32)
    error = float(jnp.abs(f32(jax.jit(lambda leaf: leaf.decode())(leaf)) - f32(remaining)).max())
    jm.save(folder / "leaf.jm", leaf)
    file_bytes = (folder / "leaf.jm").stat().st_size
    dense = {"float32": 4, "bfloat16": 2, "int8": 1, "int4": 0.5}[values] * w.size
    return {
        "pattern": pattern,
        "values": values,
        "leaf": type(leaf).__name__,
        "predicted_bytes": jm.nbytes(jax.eval_shape(encode, w)),
        "bytes": jm.nbytes(leaf),
        "file_bytes": file_bytes,
        "header_bytes": file_bytes - jm.nbytes(leaf),
        "bits_per_weight": 8 * jm.nbytes(leaf) / w.size,
        "share_of_dense": jm.nbytes(leaf) / dense,
        "decode_error": error,
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        rows = [row(p, v, pathlib.Path(folder)) for p in PATTERNS for v in VALUES]
    for r in rows:
        assert r["predicted_bytes"] == r["bytes"] <= r["file_bytes"]
        assert r["decode_error"] == 0 or r["values"].startswith("int")
    results = {
        "command": "python experiments/memory/sparse_bytes.py",
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "seed": SEED,
        "shape": SHAPE,
        "rows": rows,
    }
    path = pathlib.Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    for r in rows:
        print(r["pattern"], r["values"], r["bytes"], r["header_bytes"], r["decode_error"])


if __name__ == "__main__":
    main()
