"""What a product of each format reads and holds on a TPU, by its compiler: writes tpu_formats.json.

    pip install -e ".[demo,tpu]"
    python experiments/tpu_formats.py

x (batch, 4096) times a weight (4096, 14336), bfloat16 in and out, for one chip. `floor` is the
weight's bytes, the input's and the output's, each moved once. No TPU is needed, nor weights. A row
that is in the file already is not compiled again.
"""

import json
import pathlib

import jax
import jax.numpy as jnp

import jaxmem as jm

DEVICES = ("tpu v5e:1x1", "tpu v6e:1x1")
BATCHES = (1, 8, 256)
K, N = 4096, 14_336
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
    "nf4": jm.Codebook("nf4"),
    "nf4 g64": jm.Codebook("nf4", group=64),
    "nf4 g64, double-quantized": jm.DoubleQuant(jm.Codebook("nf4", group=64), jm.Int(8, group=256)),
    "fp8 e4m3": jm.Float("e4m3"),
    "fp8 e4m3 g128": jm.Float("e4m3", group=128),
    "mxfp8": jm.Float("mxfp8"),
    "mxfp4": jm.Float("mxfp4"),
    "nvfp4": jm.Float("nvfp4"),
    "planes": jm.Planes(),
    "w8a8": jm.Dynamic(jm.Int(8)),
    "2:4": jm.NM(2, 4),
    "2:4, int4 g64": jm.Chain((jm.NM(2, 4), jm.Int(4, group=64))),
    "half of blocks 128 x 512": jm.Blocks(0.5, block=(128, 512)),
}


def row(device: str, batch: int, name: str) -> dict:
    """What the compiler says of one product."""
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
    found = {"command": "python experiments/tpu_formats.py", "seed": None, "rows": []}
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
    for name in FORMATS:
        for device in DEVICES:
            for batch in BATCHES:
                key = {"device": device, "batch": batch, "format": name}
                if any(key.items() <= r.items() for r in found["rows"]):
                    continue
                found["rows"].append(row(device, batch, name))
                path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
                r = found["rows"][-1]
                print(device, batch, name, r["temp"], r["traffic_over_floor"], flush=True)


if __name__ == "__main__":
    main()
