"""Plans for Llamas of 1B and 8B on four TPU targets, at each chip's memory: writes plans.json.

    pip install -e ".[demo,tpu]"
    python experiments/memory/plans.py [--only NAME]

Training and adapters have 8 x 2,048 tokens, serving has 16 rows of 4,096. Nothing is run: a row's
bytes are those that the target's compiler reports for the chosen recipe, compiled at the limit. The
baseline keeps bfloat16 weights, f32 optimizer state and everything that the backward pass uses.
Each row is planned in its own process with an empty cache. `host_bytes` is the most memory that
this process and the largest of its compilers used. A row that is in the file already is not planned
again.
"""

import argparse
import concurrent.futures
import hashlib
import json
import multiprocessing
import os
import pathlib
import resource
import tempfile

import jax

import jaxmem as jm
from jaxmem.io.atomic import write_whole

DEVICES = ("tpu v5e:1x1", "tpu v6e:1x1", "tpu v5p:2x2x1", "tpu v5e:2x4")
TASKS = {"serve": (16, 4096), "lora": (8, 2048), "train": (8, 2048)}
RESOURCE_USERS = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
FIRST_ROWS = ("llama-8b lora on tpu v5e:1x1", "llama-8b serve on tpu v5e:1x1")
ROWS = {
    f"{model} {task} on {device}": (model, task, device)
    for task in TASKS
    for device in DEVICES
    for model in ("llama-1b", "llama-8b")
}


def plan_row(model: str, task: str, device: str) -> dict:
    """The row of plans.json for one model, task and device."""
    batch, seq = TASKS[task]
    row = {"model": model, "task": task, "device": device, "batch": batch, "seq": seq}
    with tempfile.TemporaryDirectory() as cache:
        os.environ["JAXMEM_CACHE"] = cache
        try:
            plan = jm.plan(model, device=device, task=task, batch=batch, seq=seq)
        except ValueError as error:
            row |= {"fits": False, "why": str(error)}
        else:
            data = plan.to_data()
            plan_keys = ("limit_bytes", "chosen", "baseline", "seconds_to_plan")
            row |= {"fits": True} | {key: data[key] for key in plan_keys}
            row["tried"] = [
                {key: tried[key] for key in ("status", "peak_bytes", "why", "recipe")}
                for tried in data["rows"]
                if tried["why"] != "by arithmetic"
            ]
    peaks = [resource.getrusage(process).ru_maxrss for process in RESOURCE_USERS]
    return row | {"host_bytes": sum(peaks) * 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="part of a row's name")
    args = parser.parse_args()
    path = pathlib.Path(__file__).with_suffix(".json")
    config = lambda name: json.dumps(jm.models.load(name).config.to_dict(), sort_keys=True)
    results = {
        "command": "python experiments/memory/plans.py",
        "jax": jax.__version__,
        "backend": "TPU targets, compiled and not run",
        "seed": None,
        "config_sha256": {
            name: hashlib.sha256(config(name).encode()).hexdigest()
            for name in ("llama-1b", "llama-8b")
        },
        "rows": json.loads(path.read_text())["rows"] if path.exists() else {},
    }
    names = [*FIRST_ROWS, *(name for name in ROWS if name not in FIRST_ROWS)]
    for name in names:
        if name in results["rows"] or args.only not in name:
            continue
        spawn = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
            results["rows"][name] = row = pool.submit(plan_row, *ROWS[name]).result()
        write_whole(path, (json.dumps(results, indent=1) + "\n").encode())
        outcome = row.get("chosen", {}).get("peak_bytes") or row.get("why")
        print(name, outcome, row.get("seconds_to_plan"), row["host_bytes"], flush=True)


if __name__ == "__main__":
    main()
