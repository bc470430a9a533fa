"""What tiles of tokens add to a training step, by the TPU compiler: token_tiles.json.

    pip install -e ".[tpu]"
    python experiments/memory/token_tiles.py [ROW ...]

Steps of Llama 3.2 1B for a v5e, 8 x 2,048 tokens in 8 micro-batches, each with tiles of 512 tokens
and without. Two are compiled to the end, and of the others the compiler gives its estimate. A row
has the peak, flops and traffic, and what the planner's arithmetic says before anything is compiled.
`passes` is the flops that tiles add, in forward passes: a step with `remat` "full" has four of
them. `seconds` is that of a step with tiles over that of a step without, from flops and traffic.
Nothing is run; a row that the file has is not compiled again.
"""

import json
import pathlib
import sys
import time

import jax

import jaxmem as jm
from jaxmem.compiler.devices import target
from jaxmem.io.atomic import write_whole
from jaxmem.planner.estimates import arithmetic

PATH = pathlib.Path(__file__).with_suffix(".json")
MODEL, DEVICE, TILE = "llama-1b", "tpu v5e:1x1", 512
RELEASED = dict(release=True, optimizer="scale", state="bfloat16")
STEPS = {
    "full": dict(remat=jm.Remat("full"), state="bfloat16"),
    "none": dict(remat=jm.Remat("none"), state="bfloat16"),
    "nested": dict(remat=jm.Remat("nested"), state="bfloat16"),
    "released": RELEASED | dict(remat=jm.Remat("full")),
    "released, in int8": RELEASED | dict(remat=jm.Remat("full", held="int8")),
}
COMPILED = "full"
ROWS = {
    f"{name}, {f'tiles of {tile}' if tile else 'no tiles'}": (knobs, tile, name != COMPILED)
    for name, knobs in STEPS.items()
    for tile in (None, TILE)
}


def row_of(knobs: dict, tile: int | None, quick: bool, model: jm.models.Model) -> dict:
    """The row of a step, of which `quick` has the compiler's estimate."""
    recipe = jm.Recipe(MODEL, DEVICE, "train", 8, 2048, micro=8, tile=tile, **knobs)
    build = lambda recipe: jm.build(recipe, model=model)
    least, seconds = arithmetic(recipe, model.config, build, target(DEVICE).device)
    built, start = build(recipe), time.perf_counter()
    memory = jm.memory(built.step, *built.arguments, device=DEVICE, quick=quick)
    return {
        "recipe": json.loads(recipe.to_json()),
        "arithmetic": {"bytes": least, "seconds": seconds},
        "compiled": memory.exact,
        "peak_bytes": memory.peak,
        "flops": memory.flops,
        "traffic_bytes": memory.traffic,
        "seconds_by_counts": memory.seconds if memory.exact else None,
        "hash": memory.hash,
        "versions": memory.versions,
        "seconds_to_compile": round(time.perf_counter() - start, 1),
    }


def main() -> None:
    model = jm.models.load(MODEL)
    results = json.loads(PATH.read_text()) if PATH.exists() else {"rows": {}}
    results |= {
        "command": "python experiments/memory/token_tiles.py",
        "jax": jax.__version__,
        "backend": "a TPU target, compiled and not run",
        "seed": None,
    }
    rows = results["rows"]
    for name in sys.argv[1:] or ROWS:
        if name not in rows:
            rows[name] = row_of(*ROWS[name], model)
            print(name, rows[name], flush=True)
        results["added"] = {}
        four_passes = rows.get(f"{COMPILED}, no tiles", {}).get("flops")
        for kind in STEPS if four_passes else ():
            whole, tiled = (rows.get(f"{kind}, {t}") for t in ("no tiles", f"tiles of {TILE}"))
            if whole and tiled:
                added = {"passes": 4 * (tiled["flops"] - whole["flops"]) / four_passes}
                if tiled["compiled"]:
                    added["seconds"] = tiled["seconds_by_counts"] / whole["seconds_by_counts"]
                added["peak_bytes"] = tiled["peak_bytes"] - whole["peak_bytes"]
                results["added"][kind] = added
        write_whole(PATH, (json.dumps(results, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
