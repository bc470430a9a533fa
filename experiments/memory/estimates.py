"""Estimates of memory against the compiler's peak, for twelve programs: estimates.json.

    pip install -e ".[demo,tpu]"
    python experiments/memory/estimates.py

`programs`: steps that train, tune and serve the layers of remat_table.py. Each estimate is divided
by the peak of the full compile; the first five peaks are those of remat_table.json. The estimates
are `quick=True` (the compiler's own, in seconds) and formulas: weights x 1.2 to serve, and to train
4 x weights (the formula of `accelerate estimate-memory` for Adam) or the sum of ZeRO (Rajbhandari
et al., 2020: weights, gradients and optimizer state, divided by the chips, in the dtypes used
here). No formula counts activations.

`budgets`: a batch of 8 x 2,048 tokens under twelve budgets on one v5e, by the compiler's estimates.
`fixed_order` is MaxText's search: from keeping everything to computing everything again, with the
largest batch that fits each; it takes the candidate of most tokens a second. `plan` also tries
micro-batches, so that the batch is not made smaller. Tokens a second are an estimate from flops.
Nothing is run, and a row that is in the file already is not compiled again.
"""

import dataclasses
import json
import pathlib
import statistics
import time

import jax
from eight_layers import MODEL

import jaxmem as jm
from jaxmem.core.byte_counts import device_bytes
from jaxmem.evaluation.confidence import spearman
from jaxmem.io.atomic import write_whole

V5E, V6E, V5P, V5E_2X4 = "tpu v5e:1x1", "tpu v6e:1x1", "tpu v5p:1x1x1", "tpu v5e:2x4"
NAMED = jm.Remat("named", ("attn_out",))


def recipe(device: str, task: str, batch: int, seq: int = 2048, **knobs) -> jm.Recipe:
    return jm.Recipe("8 layers", device, task, batch, seq, **{"state": "bfloat16"} | knobs)


PROGRAMS = {
    **{
        f"train, remat {policy.kind}, v5p": ("step", recipe(V5P, "train", 4, remat=policy))
        for policy in (*map(jm.Remat, ("none", "dots_no_batch", "full", "nested")), NAMED)
    },
    "train, 4 micro-batches, v5e": ("step", recipe(V5E, "train", 8, micro=4)),
    "train, f32 state, v6e": ("step", recipe(V6E, "train", 4, remat=NAMED, state="float32")),
    "train, v5e:2x4": ("step", recipe(V5E_2X4, "train", 16, remat=NAMED)),
    "lora on int8, v5e": ("step", recipe(V5E, "lora", 4, encoding=jm.Int(8))),
    "serve, v5e": ("step", recipe(V5E, "serve", 8)),
    "serve a prompt, int8, v5e": ("prompt", recipe(V5E, "serve", 8, encoding=jm.Int(8))),
    "serve, int8, cache of 8 bits, v6e": (
        "step",
        recipe(V6E, "serve", 8, encoding=jm.Int(8), cache_bits=8),
    ),
}
POLICIES = [jm.Remat(kind) for kind in ("none", "dots_no_batch", "full")]
TABLE = pathlib.Path(__file__).with_name("remat_table.json")
GIB, BUDGETS = 2**30, (5.75, 6, 6.5, 7, 7.5, 8, 9, 10, 11, 12, 14, 15.75)
SEQ = 2048


def compare_estimates(name: str) -> dict:
    """A row of `programs`: the estimate and the formulas, divided by the compiled peak."""
    program_name, recipe = PROGRAMS[name]
    built = jm.build(recipe, model=MODEL)
    fn, args = built.programs[program_name]
    start = time.perf_counter()
    estimate = jm.memory(fn, *args, device=recipe.device, quick=True)
    seconds = {"quick": round(time.perf_counter() - start, 1)}
    table = json.loads(TABLE.read_text())["rows"].get(recipe.device, {}) if "remat" in name else {}
    if row := table.get(recipe.remat.kind + " ".join(["", *recipe.remat.names])):
        peak, program_hash, versions = (row[key] for key in ("peak_bytes", "program", "versions"))
    else:
        start = time.perf_counter()
        m = jm.memory(fn, *args, device=recipe.device)
        seconds["compiled"] = round(time.perf_counter() - start, 1)
        assert m.exact, name
        peak, program_hash, versions = m.peak, m.hash, m.versions
    parts = {part: device_bytes(tree) for part, tree in built.parts.items()}
    weights = parts["weights"]
    formulas = {}
    if recipe.task == "serve":
        formulas["weights x 1.2"] = int(1.2 * weights)
    if recipe.task == "train":
        formulas["weights x 4"] = 4 * weights
        formulas["ZeRO"] = 2 * weights + parts["optimizer"]  # and a gradient for each weight
    return {
        "device": recipe.device,
        "peak_bytes": peak,
        "quick_bytes": estimate.peak,
        "quick_over_peak": round(estimate.peak / peak, 4),
        "seconds": seconds,
        "formulas_over_peak": {name: round(n / peak, 4) for name, n in formulas.items()},
        "program": program_hash,
        "versions": versions,
    }


def probe(**knobs) -> dict:
    """Bytes and tokens a second of a train step, both estimated by the compiler."""
    batch = knobs.pop("batch")
    built = jm.build(recipe(V5E, "train", batch, SEQ, **knobs), model=MODEL)
    estimate = jm.memory(built.step, *built.arguments, device=V5E, quick=True)
    return {"bytes": estimate.peak, "tokens_a_second": round(batch * SEQ / estimate.seconds)}


def probes(probe_rows: dict):
    """Adds the rows that are missing, for both searches of `budgets`; yields the name of each."""
    for policy in POLICIES:
        for batch in (8, 4, 2, 1):
            name = f"{policy.kind}, batch {batch}"
            if name not in probe_rows:
                probe_rows[name] = probe(batch=batch, remat=policy)
                yield name
    for policy in (*POLICIES, NAMED):
        for micro in (1, 2, 4, 8):
            name = f"{policy.kind}, 8 in {micro}"
            if name not in probe_rows:
                probe_rows[name] = probe(batch=8, micro=micro, remat=policy)
                yield name


def fastest_under(budget: float, probe_rows: dict) -> dict:
    """The row of most tokens a second within a budget in GiB, for each of the two searches."""
    limit = int(budget * GIB)
    row = {"budget_bytes": limit}
    for search, mark in (("fixed_order", ", batch "), ("plan", ", 8 in ")):
        fits = {k: v for k, v in probe_rows.items() if mark in k and v["bytes"] <= limit}
        best = max(fits, key=lambda name: fits[name]["tokens_a_second"], default=None)
        batch = 0 if best is None else 8 if search == "plan" else int(best.split(mark)[1])
        choice = {"takes": best, "batch": batch}
        row[search] = choice | (
            {"unused": round(1 - fits[best]["bytes"] / limit, 4)} if best else {}
        )
        row[search] |= fits.get(best, {})
    return row


def summary(rows: dict) -> dict:
    """Median errors, rank correlation and largest errors of the rows of `programs`."""
    ratios = [row["quick_over_peak"] for row in rows.values()]
    peaks, estimates = ([row[k] for row in rows.values()] for k in ("peak_bytes", "quick_bytes"))
    errors: dict[str, list] = {}
    for row in rows.values():
        for name, ratio in row["formulas_over_peak"].items():
            errors.setdefault(name, []).append(ratio - 1)
    median_size = lambda xs: round(statistics.median(map(abs, xs)), 4)
    return {
        "quick": {"least": min(ratios), "median": statistics.median(ratios), "most": max(ratios)},
        "quick_median_error": median_size([ratio - 1 for ratio in ratios]),
        "spearman": dataclasses.asdict(spearman(estimates, peaks)) if len(rows) > 3 else None,
        "formulas_median_error": {name: median_size(xs) for name, xs in errors.items()},
        "formulas_largest_error": {name: round(max(xs, key=abs), 4) for name, xs in errors.items()},
    }


def main() -> None:
    path = pathlib.Path(__file__).with_suffix(".json")
    earlier = json.loads(path.read_text()) if path.exists() else {"programs": {}, "probes": {}}
    results = {
        "command": "python experiments/memory/estimates.py",
        "jax": jax.__version__,
        "backend": "TPU targets, compiled and not run",
        "seed": None,
        "model": "8 Llama layers, shapes only",
        "programs": earlier["programs"],
        "probes": earlier["probes"],
    }
    write = lambda: write_whole(path, (json.dumps(results, indent=1) + "\n").encode())
    for name in PROGRAMS:
        if name in results["programs"]:
            continue
        results["programs"][name] = compare_estimates(name)
        results["summary"] = summary(results["programs"])
        write()
        print(name, results["programs"][name]["quick_over_peak"], flush=True)
    for name in probes(results["probes"]):
        write()
        print(name, results["probes"][name], flush=True)
    results["summary"] = summary(results["programs"])
    results["budgets"] = [fastest_under(budget, results["probes"]) for budget in BUDGETS]
    write()


if __name__ == "__main__":
    main()
