"""Bytes that a decode step of llama-8b moves, over those it must: writes decode_traffic.json.

    pip install -e ".[demo,tpu]"
    python experiments/speed/decode_traffic.py

Batch 8, 4,096 tokens of bfloat16 cache, one token a row. The floor is every weight once but for
the embedding, of which 8 rows are read, and the cache once. Traffic is counted in the text of the
program that the target's compiler made; nothing is run. Dense weights are more than a v5e has:
there, and only there, the model has 16 of its 32 layers. A row that is in the file already is not
compiled again.
"""

import dataclasses
import json
import pathlib

import jax

import jaxmem as jm
from jaxmem.architectures import llama
from jaxmem.compiler import cost_analysis, hlo
from jaxmem.io.atomic import write_whole
from jaxmem.models import Model

CODECS = {"bf16": None, "int8": jm.Int(8), "int4": jm.Int(4), "int4 g128": jm.Int(4, group=128)}
DEVICES = ("tpu v5e:1x1", "tpu v6e:1x1")
BATCH, SEQ = 8, 4096


def measured(codec, device: str) -> dict:
    recipe = jm.Recipe("llama-8b", device, "serve", BATCH, SEQ, encoding=codec)
    config = jm.models.load("llama-8b").config
    if codec is None and device == DEVICES[0]:
        config = dataclasses.replace(config, layers=config.layers // 2)
    built = jm.build(recipe, model=Model(config, llama.module(config), None, "llama-8b"))
    cache, params, *_ = built.arguments
    m = jm.memory(built.step, *built.arguments, device=device)
    floor = jm.nbytes(cache) + jm.nbytes(params) - jm.nbytes(params["embed"])
    return {
        "layers": config.layers,
        "peak_bytes": m.peak,
        "temp_bytes": m.temp,
        "traffic_bytes": m.traffic,
        "floor_bytes": floor,
        "traffic_over_floor": round(m.traffic / floor, 4),
        "seconds_estimated": m.seconds,
        "heaviest": cost_analysis.heaviest(hlo.read(m.text), 4),
        "program": m.hash,
        "versions": m.versions,
    }


def main() -> None:
    path = pathlib.Path(__file__).with_suffix(".json")
    found = {
        "command": "python experiments/speed/decode_traffic.py",
        "jax": jax.__version__,
        "backend": "TPU targets, compiled and not run",
        "seed": None,
        "model": "llama-8b, shapes only",
        "batch": BATCH,
        "seq": SEQ,
        "rows": json.loads(path.read_text())["rows"] if path.exists() else {},
    }
    for device in DEVICES:
        for name, codec in CODECS.items():
            row = f"{name} on {device}"
            if row in found["rows"]:
                continue
            found["rows"][row] = measured(codec, device)
            write_whole(path, (json.dumps(found, indent=1) + "\n").encode())
            print(row, found["rows"][row]["traffic_over_floor"], flush=True)


if __name__ == "__main__":
    main()
