"""Writes the tables of docs/quality.md from the experiments' JSON.

python experiments/tables/quality_table.py
"""

from pages import fill, read

import jaxmem as jm

METHODS = ("RTN", "Search", "HQQ", "numpy GPTQ", "GPTQ")  # in this order, what builds on them after
TURNS = "GPTQ of a weighted search, 4 turns"
BEFORE = {  # method: the one that it adds a step to
    "Search": "RTN",
    "HQQ": "RTN",
    "GPTQ": "RTN",
    "GPTQ of a weighted search": "GPTQ",
    TURNS: "GPTQ of a weighted search",
    f"{TURNS}, rank 8": TURNS,
    f"{TURNS}, scales tuned": TURNS,
    f"{TURNS}, by blocks": TURNS,
    f"{TURNS}, by blocks, codes learned": TURNS,
    f"{TURNS}, by blocks, codes learned, scales tuned": f"{TURNS}, by blocks, codes learned",
    "GPTQ, by blocks": "GPTQ",
}
MARKS = ("", ", control", ", all parameters")


def rows_of(name):
    rows = read(name)["rows"]
    return rows.items() if isinstance(rows, dict) else rows


def interval(found):
    return f"{found['mean']:.4f} ({found['low']:.4f}–{found['high']:.4f})"


def measured(r):
    return f"{r['perplexity']['mean']:.2f} | {interval(r['kl'])}"


def integers(*marks):
    def order(row):
        bits, _, method = row[0].partition(" bits ")
        place = METHODS.index(method) if method in METHODS else len(METHODS)
        return MARKS.index(mark_of(row[0])), -int(bits), place, len(method)

    rows = read("quantize_smollm2.json")["rows"]
    for name, r in sorted(rows.items(), key=order):
        if mark_of(name) not in marks:
            continue
        bits, _, method = name.partition(" bits ")
        method = method.removesuffix(", all parameters")
        took = f"{r['seconds']:.0f} s | {r['peak_rss'] / 2**30:.1f}" if "seconds" in r else " | "
        gained = gain(rows, name)
        yield f"{bits} | {method} | {r['bits_per_weight']:.3f} | {measured(r)} | {gained} | {took}"


def blocks():
    return integers("", ", control")


def everything():
    return integers(", all parameters")


def mark_of(name):
    return next((mark for mark in MARKS[1:] if name.endswith(mark)), "")


def gain(rows, name):
    """KL that a step takes away, with the interval of the windows' differences."""
    mark = mark_of(name)
    bits, _, method = name.removesuffix(mark).partition(" bits ")
    before = rows.get(f"{bits} bits {BEFORE.get(method)}{mark}", {}).get("kl_by_window")
    after = rows[name].get("kl_by_window")
    if not before or not after:
        return ""
    found = jm.Evaluation(1, 1, kl_by_window=after).gain(jm.Evaluation(1, 1, kl_by_window=before))
    return f"{found.mean:.4f} ({found.low:.4f}, {found.high:.4f})"


def encoder():
    for name, r in rows_of("quantize_minilm.json"):
        less = f"{r['spearman']['mean']:.4f} | {r['cosine']['mean']:.4f}"
        yield f"{name} | {r['bits_per_weight'] or 32:.3f} | {less}"


def cache():
    for name, r in rows_of("kv_cache.json"):
        sizes = f"{r['cache_bytes']:,} | {r['cache_and_temp_bytes']:,}"
        grown, ratio = r["generation"]["grown_bytes"], r["speed_ratio"]
        yield f"{name} | {sizes} | {grown:,} | {r['kl']['mean']:.5f} | {ratio:.2f}×"


def planes():
    for name, r in rows_of("planes.json"):
        yield f"{name} | {r['bits_per_weight']:.3f} | {measured(r)}"


def pruned():
    order = {"50%": 0, "60%": 1, "70%": 2, "2:4": 3, "4:8": 4}
    found = read("prune_smollm2.json")
    dense = found["rows"][0]["dense_perplexity"]["mean"]
    yield f" | dense | {found['dense_block_bytes']:,} | {dense:.2f} | 0"
    for r in sorted(found["rows"], key=lambda r: order[r["pattern"]]):
        yield f"{r['pattern']} | {r['method']} | {r['block_bytes']:,} | {measured(r)}"


def contest():
    for r in sorted(rows_of("iso_bytes.json"), key=lambda r: -r["bits_per_weight"]):
        basis = {"turned": "rotated", "plain": "as it came"}[r["basis"]]
        yield f"{r['form']} | {basis} | {r['bits_per_weight']:.3f} | {measured(r)}"


def budgets():
    for r in sorted(rows_of("budget_plans.json"), key=lambda r: -r["limit"]):
        how = f"{r['bytes']:,} | {r['least_bits']} to 8 | by {r['sensitivity']}"
        yield f"{how} | {interval(r['kl']['before'])} | {interval(r['kl']['after'])}"


def structured():
    peak = read("structured.json")["dense_v5e_peak_bytes"]
    yield f"nothing | | | | | | | {peak / 2**20:.0f} MiB"
    for r in sorted(rows_of("structured.json"), key=lambda r: (r["removed_from"], r["removed"])):
        faster = f"{r['speed']['decode']:.2f}× | {r['speed']['prompt']:.2f}×"
        after = f"{r['steps']} steps" if r["steps"] else ""
        what = f"{r['removed_from']} | {r['removed']:.1%} | {after}"
        yield f"{what} | {measured(r)} | {faster} | {r['v5e_peak_bytes'] / 2**20:.0f} MiB"


TABLES = {
    blocks: "bits | method | bits a weight | perplexity | KL | gain of the step | took | GiB",
    everything: "bits | method | bits a weight | perplexity | KL | gain of the step | took | GiB",
    encoder: " | bits a weight | Spearman | cosine",
    cache: "cache | bytes | with a step's temporaries | grown | KL | speed",
    planes: " | bits a weight | perplexity | KL",
    pruned: "pattern | method | bytes | perplexity | KL",
    contest: "form | basis | bits a weight | perplexity | KL",
    budgets: "bytes | bits | weighed | KL where it calibrates | KL",
    structured: "removed | of the parameters | distilled | perplexity | KL | decode | prompt | v5e",
}


if __name__ == "__main__":
    fill("quality.md", "quality_table.py", TABLES)
