"""Bytes that a product of each format reads and holds on a TPU, by its compiler: tpu_formats.json.

    pip install -e ".[demo,tpu]"
    python experiments/memory/tpu_formats.py [FORMAT ...]

The product is x (batch, 4096) times a weight (4096, 14336), bfloat16 in and out, on one chip.
`floor` is the bytes of the weight, the input and the output, each moved once. No TPU is needed, and
nothing is run. A row that is in the file already is not compiled again.
"""

import dataclasses
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

import jaxmem as jm
from jaxmem.core.fold import Fold
from jaxmem.formats import gguf_blocks

DEVICES = ("tpu v5e:1x1", "tpu v6e:1x1")
BATCHES = (1, 8, 256)
K, N = 4096, 14_336


@dataclasses.dataclass(frozen=True)
class Gguf:
    """The leaf as which a weight of a GGUF type is read."""

    kind: str

    def encode(self, w):
        size, _ = gguf_blocks.TYPES[self.kind]
        blocks = w.shape[0] // (256 if self.kind.endswith("_K") else 32)
        rows = gguf_blocks.rows(self.kind, np.zeros((w.shape[1], blocks * size), np.uint8))
        return rows.leaf(Fold(w.shape[1:], w.shape[:1], (-1, -2)), w.dtype)


@dataclasses.dataclass(frozen=True)
class Cut:
    """Planes of 8 bits, of which a program reads the first `bits`."""

    bits: int
    group: int | None = None

    def encode(self, w):
        return jm.at_bits(jm.Planes(group=self.group).encode(w), self.bits)


FORMATS = {
    "dense bf16": jm.Keep(),
    "int8": jm.Int(8),
    "int8 g128": jm.Int(8, group=128),
    "int4": jm.Int(4),
    "int4 g128": jm.Int(4, group=128),
    "int4 g64, zero points": jm.Int(4, group=64, symmetric=False),
    "int3": jm.Int(3),
    "int3 g64": jm.Int(3, group=64),
    "int2": jm.Int(2),
    "int2 g64": jm.Int(2, group=64),
    "int7 g64": jm.Int(7, group=64),
    "int6 g64": jm.Int(6, group=64),
    "int5 g64": jm.Int(5, group=64),
    "int4 g64, double-quantized": jm.DoubleQuant(jm.Int(4, group=64), jm.Int(8, group=256)),
    "nf4": jm.Codebook("nf4"),
    "nf4 g64": jm.Codebook("nf4", group=64),
    "nf4 g64, double-quantized": jm.DoubleQuant(jm.Codebook("nf4", group=64), jm.Int(8, group=256)),
    "fp4": jm.Codebook("fp4"),
    "kmeans 4": jm.KMeans(4),
    "kmeans 3": jm.KMeans(3),
    "kmeans 2": jm.KMeans(2),
    "kmeans 4 g512": jm.KMeans(4, group=512),
    "kmeans 2 g128": jm.KMeans(2, group=128),
    "fp4 e2m1": jm.Float("e2m1"),
    "fp4 e2m1 g64": jm.Float("e2m1", group=64),
    "fp8 e5m2": jm.Float("e5m2"),
    "fp8 e5m2 g128": jm.Float("e5m2", group=128),
    "fp8 e4m3": jm.Float("e4m3"),
    "fp8 e4m3 g128": jm.Float("e4m3", group=128),
    "mxfp8": jm.Float("mxfp8"),
    "mxfp4": jm.Float("mxfp4"),
    "nvfp4": jm.Float("nvfp4"),
    "planes": jm.Planes(),
    "planes g64, 4 bits": Cut(4, group=64),
    "w8a8": jm.Dynamic(jm.Int(8)),
    "w4a8": jm.Dynamic(jm.Int(4)),
    "w4a8 g64": jm.Dynamic(jm.Int(4, group=64)),
    "fp8 e4m3, both": jm.Dynamic(jm.Float("e4m3"), "e4m3"),
    "2:4": jm.NM(2, 4),
    "2:4, int4 g64": jm.Chain((jm.NM(2, 4), jm.Int(4, group=64))),
    "half of blocks 128 x 512": jm.Blocks(0.5, block=(128, 512)),
} | {f"gguf {kind}": Gguf(kind) for kind in ("Q4_1", "Q5_1", "Q8_0", "Q3_K", "Q4_K", "Q6_K")}


def measure(device: str, batch: int, name: str) -> dict:
    """The row of one product: the bytes that the compiler reports."""
    w = jax.ShapeDtypeStruct((K, N), jnp.bfloat16)
    x = jax.ShapeDtypeStruct((batch, K), jnp.bfloat16)
    leaf = jax.eval_shape(FORMATS[name].encode, w)
    fn = lambda w, x: x @ w
    m = jm.memory(jm.lift(fn) if jm.is_encoded(leaf) else fn, leaf, x, device=device)
    floor = jm.nbytes((leaf, x)) + 2 * batch * N
    return {
        "device": device,
        "batch": batch,
        "format": name,
        "codec": str(FORMATS[name]),
        "weight_bytes": jm.nbytes(leaf),
        "arguments": m.arguments,
        "temp": m.temp,
        "traffic": m.traffic,
        "floor": floor,
        "traffic_over_floor": round(m.traffic / floor, 3),
        "versions": m.versions,
    }


def main() -> None:
    path = pathlib.Path(__file__).with_suffix(".json")
    results = {
        "command": "python experiments/memory/tpu_formats.py",
        "backend": "TPU targets, compiled and not run",
        "seed": None,
        "rows": [],
    }
    if path.exists():
        results |= {"rows": json.loads(path.read_text(encoding="utf-8"))["rows"]}
    for name in sys.argv[1:] or FORMATS:
        for device in DEVICES:
            for batch in BATCHES:
                key = {"device": device, "batch": batch, "format": name}
                if any(key.items() <= r.items() for r in results["rows"]):
                    continue
                results["rows"].append(measure(device, batch, name))
                path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
                r = results["rows"][-1]
                print(device, batch, name, r["temp"], r["traffic_over_floor"], flush=True)


if __name__ == "__main__":
    main()
