"""Bytes that a decode step of llama-8b moves, over those it must: writes decode_traffic.json.

    pip install -e ".[demo,tpu]"
    python experiments/speed/decode_traffic.py

The batch has 8 rows of one token, the cache 4,096 tokens in bfloat16. The floor is the cache once,
and every weight once but for the embedding, of which 8 rows are read. Traffic is counted in the
text of the program that the target's compiler made; nothing is run. A v5e cannot hold all dense
weights: there, and only there, the model has 16 of its 32 layers. A row that is in the file already
is not compiled again.
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

CODECS = {
    "bf16": None,
    "int8": jm.Int(8),
    "int8 g128": jm.Int(8, group=128),
    "e4m3": jm.Float("e4m3"),
    "int4": jm.Int(4),
    "int4 g128": jm.Int(4, group=128),
}
DEVICES = ("tpu v5e:1x1", "tpu v6e:1x1")
BATCH, SEQ = 8, 4096


def measure(codec, device: str) -> dict:
    recipe = jm.Recipe("llama-8b", device, "serve", BATCH, SEQ, encoding=codec)
    config = jm.models.load("llama-8b").config
    if codec is None and device == DEVICES[0]:
        config = dataclasses.replace(config, layers=config.layers // 2)
    program = jm.build(recipe, model=Model(config, llama.module(config), None, "llama-8b"))
    cache, params, *_ = program.arguments
    memory = jm.memory(program.step, *program.arguments, device=device)
    floor = jm.nbytes(cache) + jm.nbytes(params) - jm.nbytes(params["embed"])
    return {
        "layers": config.layers,
        "peak_bytes": memory.peak,
        "temp_bytes": memory.temp,
        "traffic_bytes": memory.traffic,
        "floor_bytes": floor,
        "traffic_over_floor": round(memory.traffic / floor, 4),
        "seconds_estimated": memory.seconds,
        "heaviest": cost_analysis.heaviest(hlo.read(memory.text), 4),
        "program": memory.hash,
        "versions": memory.versions,
    }


def main() -> None:
    path = pathlib.Path(__file__).with_suffix(".json")
    results = {
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
        for codec_name, codec in CODECS.items():
            name = f"{codec_name} on {device}"
            if name in results["rows"]:
                continue
            results["rows"][name] = measure(codec, device)
            write_whole(path, (json.dumps(results, indent=1) + "\n").encode())
            print(name, results["rows"][name]["traffic_over_floor"], flush=True)


if __name__ == "__main__":
    main()
