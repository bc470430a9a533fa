"""Writes the tables of docs/quality.md from the JSON beside this file.

python experiments/quality_table.py
"""

import json
import pathlib

HERE = pathlib.Path(__file__).parent
PAGE = HERE.parent / "docs" / "quality.md"
START, END = "<!-- {}: written by experiments/quality_table.py -->\n", "<!-- end -->"
METHODS = ("RTN", "Search", "HQQ", "numpy GPTQ", "GPTQ")  # in this order, what builds on them after


def read(name):
    rows = json.loads((HERE / name).read_text(encoding="utf-8"))["rows"]
    return rows.items() if isinstance(rows, dict) else rows


def interval(found):
    return f"{found['mean']:.4f} ({found['low']:.4f}–{found['high']:.4f})"


def measured(r):
    return f"{r['perplexity']['mean']:.2f} | {interval(r['kl'])}"


def integers():
    def order(row):
        bits, _, method = row[0].partition(" bits ")
        place = METHODS.index(method) if method in METHODS else len(METHODS)
        return "," in row[0] and row[0].endswith("control"), -int(bits), place, len(method)

    for name, r in sorted(read("quantize_smollm2.json"), key=order):
        bits, _, method = name.partition(" bits ")
        took = f"{r['seconds']:.0f} s | {r['peak_rss'] / 2**30:.1f}" if "seconds" in r else " | "
        yield f"{bits} | {method} | {r['bits_per_weight']:.3f} | {measured(r)} | {took}"


def encoder():
    for name, r in read("quantize_minilm.json"):
        less = f"{r['spearman']['mean']:.4f} | {r['cosine']['mean']:.4f}"
        yield f"{name} | {r['bits_per_weight'] or 32:.3f} | {less}"


def cache():
    for name, r in read("kv_cache.json"):
        sizes = f"{r['cache_bytes']:,} | {r['cache_and_temp_bytes']:,}"
        yield f"{name} | {sizes} | {r['kl']['mean']:.5f} | {r['tokens_per_second']:.1f}"


def planes():
    for name, r in read("planes.json"):
        yield f"{name} | {r['bits_per_weight']:.3f} | {measured(r)}"


def pruned():
    order = {"50%": 0, "60%": 1, "70%": 2, "2:4": 3, "4:8": 4}
    for r in sorted(read("prune_smollm2.json"), key=lambda r: order[r["pattern"]]):
        yield f"{r['pattern']} | {r['method']} | {r['block_bytes']:,} | {measured(r)}"


def contest():
    for r in sorted(read("iso_bytes.json"), key=lambda r: -r["bits_per_weight"]):
        basis = {"turned": "rotated", "plain": "as it came"}[r["basis"]]
        yield f"{r['form']} | {basis} | {r['bits_per_weight']:.3f} | {measured(r)}"


def structured():
    for r in sorted(read("structured.json"), key=lambda r: (r["removed_from"], r["removed"])):
        faster = f"{r['speed']['decode']:.2f}× | {r['speed']['prompt']:.2f}×"
        after = f"{r['steps']} steps" if r["steps"] else ""
        what = f"{r['removed_from']} | {r['removed']:.1%} | {after}"
        yield f"{what} | {measured(r)} | {faster} | {r['v5e_peak_bytes'] / 2**20:.0f} MiB"


TABLES = {
    "integers": integers,
    "encoder": encoder,
    "cache": cache,
    "planes": planes,
    "pruned": pruned,
    "contest": contest,
    "structured": structured,
}


def main():
    page = PAGE.read_text(encoding="utf-8")
    for name, rows in TABLES.items():
        before, _, after = page.partition(START.format(name))
        head = "".join(after.splitlines(keepends=True)[:2])  # the titles and the rule below them
        body = "".join(f"| {row} |\n" for row in rows())
        page = before + START.format(name) + head + body + END + after.partition(END)[2]
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
