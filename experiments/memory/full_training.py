"""Full training on one chip, planned and proved by the TPU compiler: full_training.json.

    pip install -e ".[demo,tpu]"
    python experiments/memory/full_training.py [ROW ...]

`recipe` rows are steps that train all weights of Llama 3.1 8B, 8 x 2,048 tokens, on a v5e and on a
v6e within 24 GiB: a full compile at the limit is the certificate. For `plan` rows `jm.plan` chooses
the recipe, also of Llama 3.2 1B, with an empty cache. `limits` plans a small model under ten
limits, each smaller than the one before: a peak never exceeds its limit. Nothing is run.
`host_bytes` is the most memory that this process and the largest of its compilers used. A row that
the file has is not made again.
"""

import concurrent.futures
import hashlib
import json
import multiprocessing
import os
import pathlib
import resource
import sys
import tempfile

import jax

import jaxmem as jm
from jaxmem.architectures import llama
from jaxmem.io.atomic import write_whole
from jaxmem.models import Model

PATH = pathlib.Path(__file__).with_suffix(".json")
V5E, V6E, GIB = "tpu v5e:1x1", "tpu v6e:1x1", 2**30
SMALL = llama.Config(
    vocab=16_384, width=512, ffn=1_536, layers=8, heads=8, kv_heads=4, head_dim=64, tied=False
)
LIMITS = [round(1.6 * 0.88**i, 3) for i in range(10)]  # GiB
RELEASED = dict(release=True, optimizer="scale", micro=8)
ON_V5E = dict(encoding=jm.Int(8), state="int8", remat=jm.Remat("full", held="int8"))
RECIPES = {
    "recipe, 8b, v6e": (dict(state="bfloat16", remat=jm.Remat("full")), V6E, 24.0),
    "recipe, 8b, v5e": (ON_V5E, V5E, 15.75),
}
PLANS = {
    "plan, 8b, v5e": ("llama-8b", V5E, 15.75, 1),
    "plan, 8b, v6e": ("llama-8b", V6E, 24.0, 1),
    "plan, 1b, v5e": ("llama-1b", V5E, 15.75, 3),
} | {f"limits, {x} GiB": ("small", V5E, x, 1) for x in LIMITS}
RESOURCE_USERS = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)


def recipe_row(knobs: dict, device: str, gib: float) -> dict:
    """The row of a recipe: its certificate."""
    recipe = jm.Recipe("llama-8b", device, "train", 8, 2048, **RELEASED, **knobs)
    built = jm.build(recipe)
    options = dict(device=device, limit=int(gib * GIB), timeout=3600.0)
    memory = jm.memory(built.step, *built.arguments, **options)
    state = built.arguments[0]
    return {
        "recipe": json.loads(recipe.to_json()),
        "weight_bytes": jm.nbytes(state["params"]),
        "optimizer_bytes": jm.nbytes(state["opt"]),
        "compiled": memory.exact,
        "memory": json.loads(memory.to_json()),
    }


def plan_row(name: str, device: str, gib: float, most: int) -> dict:
    """The row of a model on a device under a limit."""
    small = Model(SMALL, llama.module(SMALL), None, "small")
    model = small if name == "small" else name
    batch, seq = 8, 512 if name == "small" else 2048
    row = {"model": name, "device": device, "batch": batch, "seq": seq}
    with tempfile.TemporaryDirectory() as cache:
        os.environ["JAXMEM_CACHE"] = cache
        show = lambda tried: print("   ", tried.status, tried.peak, tried.knobs.summary, flush=True)
        options = dict(device=device, task="train", batch=batch, seq=seq, most=most, tell=show)
        try:
            plan = jm.plan(model, limit=int(gib * GIB), **options)
        except ValueError as error:
            return row | {"limit_bytes": int(gib * GIB), "why": str(error)}
    data = plan.to_data()
    keys = ("limit_bytes", "chosen", "baseline", "versions", "seconds_to_plan")
    row |= {key: data[key] for key in keys}
    fields = ("status", "peak_bytes", "compiled", "seconds_estimated", "noise", "why", "recipe")
    row["tried"] = [{k: x[k] for k in fields} for x in data["rows"] if x["why"] != "by arithmetic"]
    peaks = [resource.getrusage(process).ru_maxrss for process in RESOURCE_USERS]
    return row | {"host_bytes": sum(peaks) * 1024}


def main() -> None:
    sizes = lambda config: json.dumps(config.to_dict(), sort_keys=True)
    configs = {name: jm.models.load(name).config for name in ("llama-1b", "llama-8b")}
    results = json.loads(PATH.read_text()) if PATH.exists() else {"rows": {}}
    results |= {
        "command": "python experiments/memory/full_training.py",
        "jax": jax.__version__,
        "backend": "TPU targets, compiled and not run",
        "seed": None,
        "config_sha256": {
            name: hashlib.sha256(sizes(config).encode()).hexdigest()
            for name, config in (configs | {"small": SMALL}).items()
        },
    }
    for name in sys.argv[1:] or (*RECIPES, *PLANS):
        if name in results["rows"]:
            continue
        make = (recipe_row, *RECIPES[name]) if name in RECIPES else (plan_row, *PLANS[name])
        spawn = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
            results["rows"][name] = row = pool.submit(*make).result()
        write_whole(PATH, (json.dumps(results, indent=1) + "\n").encode())
        chosen = row.get("chosen") or {"peak_bytes": row.get("memory", {}).get("peak")}
        outcome = chosen["peak_bytes"] or row.get("why")
        print(name, outcome, row.get("seconds_to_plan"), row.get("host_bytes"), flush=True)


if __name__ == "__main__":
    main()
