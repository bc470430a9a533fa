"""Writes the tables of docs/memory.md from the experiments' JSON.

python experiments/tables/memory_table.py
"""

import json

from pages import fill, read

import jaxmem as jm

WEIGHTS = 4096 * 14_336  # of tpu_formats.py
CPU = ("0.10.2", "0.12.0.1")  # versions of jax
TASKS = ("train", "lora", "serve")


def gib(n):
    return "–" if n is None else f"{n / 2**30:.2f}"


def plans():
    rows = read("plans.json")["rows"].values()
    for r in sorted(rows, key=lambda r: (r["model"], TASKS.index(r["task"]), r["device"])):
        what = f"{r['model']} | {r['task']} | {r['device'].removeprefix('tpu ')}"
        if not r["fits"]:
            yield f"{what} | {r['why'].partition(': ')[2] or r['why']} | | | |"
            continue
        recipe = jm.Recipe.from_json(json.dumps(r["chosen"]["recipe"]))
        sizes = f"{gib(r['chosen']['peak_bytes'])} of {gib(r['limit_bytes'])}"
        plain = gib(r["baseline"]["needed_bytes"]) + (
            "" if r["baseline"]["fits"] else ", does not fit"
        )
        took = f"{r['seconds_to_plan']:.0f} s, {gib(r['host_bytes'])} GiB"
        words = recipe.summary
        if "planned_by" in r:  # an earlier version, which laid arrays out in its own way
            words += f" ({r['planned_by']})"
        yield f"{what} | {words} | {sizes} | {plain} | {took}"


def remat():
    found = read("remat_table.json")
    for device, rows in found["rows"].items():
        for name, r in sorted(rows.items(), key=lambda row: -row[1]["peak_bytes"]):
            sizes = f"{gib(r['peak_bytes'])} | {gib(r['host_bytes'])} | {gib(r['residual_bytes'])}"
            cost = f"{r['flops'] / 1e12:.1f} | {r['cost_seconds'] * 1e3:.0f} ms"
            mark = "yes" if name in found["chosen"][device] else ""
            yield f"{device} | {name} | {sizes} | {cost} | {mark}"


def quick():
    for name, r in read("estimates.json")["programs"].items():
        took = " | ".join(
            f"{r['seconds'][k]} s" for k in ("quick", "compiled") if k in r["seconds"]
        )
        took += "" if "compiled" in r["seconds"] else " | "
        ratios = r["formulas_over_peak"].items()
        formulas = ", ".join(f"{formula}: {ratio:.2f}" for formula, ratio in ratios)
        yield f"{name} | {gib(r['peak_bytes'])} | {r['quick_over_peak']:.2f} | {took} | {formulas}"


def estimators():
    s = read("estimates.json")["summary"]
    order = f"Spearman {s['spearman']['mean']:.3f}"
    yield f"`quick=True` | {s['quick_median_error']:.1%} | {order}"
    for name, error in s["formulas_median_error"].items():
        yield f"{name} | {error:.0%} | at most {abs(s['formulas_largest_error'][name]):.0%}"


def budgets():
    def way(r):
        if r["takes"] is None:
            return "nothing fits | "
        return f"{r['takes']} | {r['tokens_a_second'] / 1e3:.0f} k"

    for r in read("estimates.json")["budgets"]:
        yield f"{gib(r['budget_bytes'])} | {way(r['fixed_order'])} | {way(r['plan'])}"


def traffic():
    for name, r in read("decode_traffic.json")["rows"].items():
        sizes = f"{r['traffic_bytes'] / 1e9:.2f} | {r['floor_bytes'] / 1e9:.2f}"
        yield f"{name} | {r['layers']} | {sizes} | {r['traffic_over_floor']:.4f}"


def resident():
    found = read("resident.json")
    for name, r in found["rows"].items():
        mb = lambda key: f"{r[key] / 1e6:.1f}"  # noqa: B023
        noted = " (noted)" if r["notes"] else ""
        yield f"{name}{noted} | {mb('predicted')} | {mb('grown')} | {r['error']:+.1%}"
    worst, middle = found["largest_error"], found["median_error"]
    yield f"**largest and median error** | | | {worst:.1%}, {middle:.1%}"


def products():
    rows = read("tpu_formats.json")["rows"]
    found = {(r["format"], r["device"].removeprefix("tpu "), r["batch"]): r for r in rows}
    for name in dict.fromkeys(r["format"] for r in rows):
        here = [r for r in rows if r["format"] == name]
        cells = (
            f"{found[name, chip, batch]['traffic_over_floor']:.2f}"
            if (name, chip, batch) in found
            else ""
            for chip in ("v5e:1x1", "v6e:1x1")
            for batch in (1, 8, 256)
        )
        held = max(r["temp"] for r in here) / 2**20
        bits = 8 * here[0]["weight_bytes"] / WEIGHTS
        yield f"{name} | {bits:.2f} | {held:.1f} | {' | '.join(cells)}"


def one_block():
    found = read("by_block_memory.json")
    for r in found["rows"]:
        sizes = " | ".join(gib(r[key]) for key in ("dense_bytes", "encoded_bytes", "peak_rss"))
        yield f"{r['layers']} | {sizes}"
    yield f"32, by arithmetic | | | {gib(found['whole_bytes'])}"


def caches():
    for r in read("kv_tpu.json")["rows"]:
        if "rotated" in r["cache"]:
            continue  # as without
        what = f"{r['model']} | {r['batch']} | {r['length']:,} | {r['cache']}"
        sizes = " | ".join(f"{r[name] / 2**20:,.1f}" for name in ("cache_bytes", "temp_bytes"))
        yield f"{what} | {sizes} | {r['traffic'] / 1e9:.2f}"


def on_cpu():
    found = [read(f"cpu_matvec.jax{jax}.json") for jax in CPU]
    assert all(f["cores"] == 1 for f in found)  # as the page says
    speed = {(f["jax"], r["batch"], r["format"]): r for f in found for r in f["rows"]}
    k, n = found[0]["shape"]
    for r in found[0]["rows"][1 : len(found[0]["rows"]) // 2]:
        cells = (
            f"{speed[jax, batch, r['format']]['times_dense']:.2f}×"
            for batch in (1, 8)
            for jax in CPU
        )
        yield f"{r['format']} | {8 * r['bytes'] / (k * n):.2f} | {' | '.join(cells)}"


TABLES = {
    plans: "model | task | device | recipe | GiB, of the chip's | plain way, GiB | planned in",
    remat: "target | policy | peak, GiB | host, GiB | residuals, GiB | Tflop | cost | chosen",
    quick: "program | peak, GiB | quick ÷ peak | quick took | compile took | formulas ÷ peak",
    estimators: "estimator | median error | ",
    budgets: "budget, GiB | fixed order takes | tokens/s | with micro-batches | tokens/s",
    traffic: "weights | layers | GB moved | floor, GB | ratio",
    products: "format | bits a weight | temp, MiB | v5e: 1 | 8 | 256 | v6e: 1 | 8 | 256",
    on_cpu: "format | bits a weight | 1 row, jax 0.10.2 | 0.12 | 8 rows, jax 0.10.2 | 0.12",
    caches: "model | batch | tokens | cache | MiB | temp, MiB | GB moved a step",
    resident: "program | predicted, MB | grown, MB | error",
    one_block: "layers | bfloat16, GiB | encoded, GiB | peak, GiB",
}


if __name__ == "__main__":
    fill("memory.md", "memory_table.py", TABLES)
