"""Plans to serve llama-8b on one v5e at the load of a trace: writes serve_plans.json.

    pip install -e ".[demo,tpu]"
    python experiments/memory/serve_plans.py --load azure_conv.csv

The load are the requests of at most 8,192 tokens of Azure's conversations (Patel et al., 2024).
Keys and values are in a pool of as many pages as the rows need in 99 % of steps. With `bf16`
weights, which the chip cannot hold, some stacks of layers stay in host memory. Nothing is run:
bytes are those of the target's compiler, tokens a second an estimate from flops, traffic and the
link to the host. `cache_pages` is what caches of 8,192 tokens a row would take. A row that is in
the file already is not planned again.
"""

import argparse
import json
import pathlib

import jax

import jaxmem as jm
from jaxmem.io.atomic import write_whole
from jaxmem.planner.page_load import read_load

DEVICE, SEQ = "tpu v5e:1x1", 8192
ROWS = {
    "8 rows": (8, {}),
    "32 rows": (32, {}),
    "64 rows": (64, {}),
    "8 rows, bf16 weights": (8, {"encodings": [None], "most": 1}),
    "32 rows, bf16 weights": (32, {"encodings": [None], "most": 1}),
}


def plan_row(load: list, batch: int, options: dict) -> dict:
    try:
        plan = jm.plan(
            "llama-8b", device=DEVICE, task="serve", batch=batch, seq=SEQ, load=load, **options
        )
    except ValueError as error:
        return {"rows": batch, "fits": False, "why": str(error)}
    data = plan.to_data()
    return {
        "rows": batch,
        "pages": plan.recipe.pages,
        "cache_pages": batch * SEQ // 64,
        "host_bytes": plan.chosen.programs["step"].host,
        **{key: data[key] for key in ("limit_bytes", "chosen", "versions", "seconds_to_plan")},
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--load", required=True)
    args = parser.parse_args()
    load = [pair for pair in read_load(args.load) if sum(pair) <= SEQ]
    path = pathlib.Path(__file__).with_suffix(".json")
    results = {
        "command": f"python experiments/memory/{path.stem}.py --load azure_conv.csv",
        "jax": jax.__version__,
        "backend": "TPU targets, compiled and not run",
        "seed": None,
        "model": "llama-8b, shapes only",
        "device": DEVICE,
        "requests": len(load),
        "rows": json.loads(path.read_text())["rows"] if path.exists() else {},
    }
    for name, (batch, options) in ROWS.items():
        if name not in results["rows"]:
            results["rows"][name] = plan_row(load, batch, options)
            print(name, results["rows"][name])
            write_whole(path, (json.dumps(results, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
