"""Writes the tables of docs/memory.md from the experiments' JSON.

python experiments/tables/memory_table.py
"""

import json
import re

from pages import fill, read

import jaxmem as jm

WEIGHTS = 4096 * 14_336  # weights of the matrix in tpu_formats.py
JAX_VERSIONS = ("0.10.2", "0.12.0.1")
GRAM_MATRICES = 7  # matrices (k, k) in f32 that a solver takes, the one in the stats among them
EIGEN_MATRICES = 4  # of the shorter side, with their vectors and the workspace of LAPACK
ON_MACHINES = "AVX-512: {0} | {1} | and jax 0.12: {0} | {1} | AVX2: {0} | {1}"
TASK_ORDER = ("train", "lora", "serve")


def gib(n):
    return "–" if n is None else f"{n / 2**30:.2f}"


def plans():
    rows = read("plans.json")["rows"].values()
    for r in sorted(rows, key=lambda r: (r["model"], TASK_ORDER.index(r["task"]), r["device"])):
        target = f"{r['model']} | {r['task']} | {r['device'].removeprefix('tpu ')}"
        if not r["fits"]:
            yield f"{target} | {r['why'].partition(': ')[2] or r['why']} | | | |"
            continue
        recipe = jm.Recipe.from_json(json.dumps(r["chosen"]["recipe"]))
        sizes = f"{gib(r['chosen']['peak_bytes'])} of {gib(r['limit_bytes'])}"
        baseline = gib(r["baseline"]["needed_bytes"]) + (
            "" if r["baseline"]["fits"] else ", does not fit"
        )
        planning = f"{r['seconds_to_plan']:.0f} s, {gib(r['host_bytes'])} GiB"
        summary = recipe.summary
        yield f"{target} | {summary} | {sizes} | {baseline} | {planning}"


def remat():
    results = read("remat_table.json")
    for device, rows in results["rows"].items():
        for name, r in sorted(rows.items(), key=lambda row: -row[1]["peak_bytes"]):
            sizes = f"{gib(r['peak_bytes'])} | {gib(r['host_bytes'])} | {gib(r['residual_bytes'])}"
            cost = f"{r['flops'] / 1e12:.1f} | {r['cost_seconds'] * 1e3:.0f} ms"
            chosen = "yes" if name in results["chosen"][device] else ""
            yield f"{device} | {name} | {sizes} | {cost} | {chosen}"


def quick():
    for name, r in read("estimates.json")["programs"].items():
        times = " | ".join(
            f"{r['seconds'][key]} s" for key in ("quick", "compiled") if key in r["seconds"]
        )
        times += "" if "compiled" in r["seconds"] else " | "
        ratios = r["formulas_over_peak"].items()
        formulas = ", ".join(f"{formula}: {ratio:.2f}" for formula, ratio in ratios)
        yield f"{name} | {gib(r['peak_bytes'])} | {r['quick_over_peak']:.2f} | {times} | {formulas}"


def estimators():
    summary = read("estimates.json")["summary"]
    order = f"Spearman {summary['spearman']['mean']:.3f}"
    yield f"`quick=True` | {summary['quick_median_error']:.1%} | {order}"
    for name, error in summary["formulas_median_error"].items():
        yield f"{name} | {error:.0%} | at most {abs(summary['formulas_largest_error'][name]):.0%}"


def budgets():
    def cells(r):
        if r["takes"] is None:
            return "nothing fits | "
        return f"{r['takes']} | {r['tokens_a_second'] / 1e3:.0f} k"

    for r in read("estimates.json")["budgets"]:
        yield f"{gib(r['budget_bytes'])} | {cells(r['fixed_order'])} | {cells(r['plan'])}"


def traffic():
    for name, r in read("decode_traffic.json")["rows"].items():
        sizes = f"{r['traffic_bytes'] / 1e9:.2f} | {r['floor_bytes'] / 1e9:.2f}"
        yield f"{name} | {r['layers']} | {sizes} | {r['traffic_over_floor']:.4f}"


def recurrent():
    for r in read("recurrent_traffic.json")["rows"]:
        if r["device"] != "cpu":
            ratios = r["ratio"], r["ratio_to_rows"], r["traffic"] / r["steps"]
            cells = " | ".join(f"{x:.2f}" for x in ratios)
            size = f"{r['units']:,} | {r['words']:,} | {r['batch']} | {r['weights']}"
            yield f"{size} | {r['traffic'] / 1e6:,.1f} | {cells}"


def resident():
    results = read("resident.json")
    for name, r in results["rows"].items():
        mb = lambda key: f"{r[key] / 1e6:.1f}"  # noqa: B023
        notes = " (noted)" if r["notes"] else ""
        yield f"{name}{notes} | {mb('predicted')} | {mb('grown')} | {r['error']:+.1%}"
    worst, median = results["largest_error"], results["median_error"]
    yield f"**largest and median error** | | | {worst:.1%}, {median:.1%}"


def products():
    rows = read("tpu_formats.json")["rows"]
    by_key = {(r["format"], r["device"].removeprefix("tpu "), r["batch"]): r for r in rows}
    for name in dict.fromkeys(r["format"] for r in rows):
        format_rows = [r for r in rows if r["format"] == name]
        cells = (
            f"{by_key[name, chip, batch]['traffic_over_floor']:.2f}"
            if (name, chip, batch) in by_key
            else ""
            for chip in ("v5e:1x1", "v6e:1x1")
            for batch in (1, 8, 256)
        )
        temp_mib = max(r["temp"] for r in format_rows) / 2**20
        bits = 8 * format_rows[0]["weight_bytes"] / WEIGHTS
        yield f"{name} | {bits:.2f} | {temp_mib:.1f} | {' | '.join(cells)}"


def one_block():
    results = read("by_block_memory.json")
    for r in results["rows"]:
        sizes = " | ".join(gib(r[key]) for key in ("dense_bytes", "encoded_bytes", "peak_rss"))
        yield f"{r['layers']} | {sizes}"
    yield f"32, by arithmetic | | | {gib(results['whole_bytes'])}"


def encode_cost():
    cost = read("encode_cost.json")
    for r in cost["leaves"]:
        gram = r.get("gram", 0)
        limit = 2 + r["result"] + GRAM_MATRICES * gram
        if re.search("LowRank|QERA", r["what"]) and "layers" not in r["what"]:
            shorter = min(cost["shape"][r["dtype"]])
            limit += EIGEN_MATRICES * 4 * shorter**2 / 2**26  # f32, in weights of 64 MiB
        numbers = " | ".join(f"{x:.2f}" for x in (r["peak"], r["result"], gram, limit))
        yield f"{r['what']} | {r['dtype']} | {numbers} | {'' if r['peak'] <= limit else 'exceeded'}"


def caches():
    for r in read("kv_tpu.json")["rows"]:
        if "rotated" in r["cache"]:
            continue  # its bytes are those of the cache that is not rotated
        program = f"{r['model']} | {r['batch']} | {r['length']:,} | {r['cache']}"
        sizes = " | ".join(f"{r[name] / 2**20:,.1f}" for name in ("cache_bytes", "temp_bytes"))
        yield f"{program} | {sizes} | {r['traffic'] / 1e9:.2f}"


def on_cpu():
    names = [f"avx512-vnni.jax{jax}" for jax in JAX_VERSIONS] + ["avx2.jax0.10.2"]
    files = [read(f"cpu_matvec.{name}.json") for name in names]
    assert all(f["cores"] == 1 for f in files)  # the page says so
    tables = [{(r["batch"], r["format"]): r for r in f["rows"]} for f in files]
    k, n = files[0]["shape"]
    for r in files[0]["rows"][1 : len(files[0]["rows"]) // 2]:
        cells = (
            f"{rows[batch, r['format']]['times_dense']:.2f}×" for rows in tables for batch in (1, 8)
        )
        yield f"{r['format']} | {8 * r['bytes'] / (k * n):.2f} | {' | '.join(cells)}"


def beside_llama_cpp():
    names = [f"avx512-vnni.jax{jax}" for jax in JAX_VERSIONS] + ["avx2.jax0.10.2"]
    files = [read(f"llama_cpp.{name}.json") for name in names]
    for kind in files[0]["cores=1"]["rows"]:
        rows = [f[f"cores={cores}"]["rows"].get(kind) for f in files for cores in (1, 2)]
        cells = (f"{r['times_llama_cpp']:.2f}" if r else "" for r in rows)
        yield f"{kind} | {' | '.join(cells)}"


TABLES = {
    plans: "model | task | device | recipe | GiB, of the chip's | plain way, GiB | planned in",
    remat: "target | policy | peak, GiB | host, GiB | residuals, GiB | Tflop | cost | chosen",
    quick: "program | peak, GiB | quick ÷ peak | quick took | compile took | formulas ÷ peak",
    estimators: "estimator | median error | ",
    budgets: "budget, GiB | fixed order takes | tokens/s | with micro-batches | tokens/s",
    traffic: "weights | layers | GB moved | floor, GB | ratio",
    recurrent: "units | words | texts | weights | MB moved | to all once | to rows | to steps",
    products: "format | bits a weight | temp, MiB | v5e: 1 | 8 | 256 | v6e: 1 | 8 | 256",
    on_cpu: f"format | bits a weight | {ON_MACHINES.format('1 row', '8')}",
    beside_llama_cpp: f"weights | {ON_MACHINES.format('1 core', '2')}",
    caches: "model | batch | tokens | cache | MiB | temp, MiB | GB moved a step",
    resident: "program | predicted, MB | grown, MB | error",
    encode_cost: "what | weight | peak | result | E[x xᵀ] | limit | ",
    one_block: "layers | bfloat16, GiB | encoded, GiB | peak, GiB",
}


if __name__ == "__main__":
    fill("memory.md", "memory_table.py", TABLES)
