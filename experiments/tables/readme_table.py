"""Writes the README's table of measured results, and its picture, from the experiments' JSON.

python experiments/tables/readme_table.py
"""

from pages import DOCS, EXPERIMENTS, read

START, END = "<!-- table: written by experiments/tables/readme_table.py -->\n", "<!-- end -->"
LABELS = {163_000_000: "163 MB", 122_000_000: "122 MB", 102_000_000: "102 MB"}


def quality():
    """(limit, budget's row, best uniform row) for each size."""
    rows = read("fit_smollm2.json")["rows"]
    for limit in LABELS:
        rows_of_limit = [r for r in rows if r["limit_bytes"] == limit]
        plan = next(r for r in rows_of_limit if r["plan"] == "weights only")
        uniform = [r for r in rows_of_limit if r["plan"].startswith("uniform")]
        yield limit, plan, min(uniform, key=lambda r: r["kl"]["mean"])


def table():
    lines = ["| SmolLM2-135M, rotated | bytes | perplexity | KL to dense |", "|---|---|---|---|"]
    row = read("fit_smollm2.json")["rows"][0]
    weights = round(8 * row["bytes"] / row["bits_per_weight"])
    lines.append(
        f"| dense, float32 | {4 * weights:,} | {row['dense_perplexity']['mean']:.2f} | 0 |"
    )
    cells = lambda r: f"{r['bytes']:,} | {r['perplexity']['mean']:.2f} | {r['kl']['mean']:.4f} |"
    for limit, plan, uniform in quality():
        lines.append(f"| `fit`, {LABELS[limit]}, no data | {cells(plan)}")
        lines.append(f"| best uniform rounding at no fewer | {cells(uniform)}")
        for r in read("fit_smollm2.json")["rows"]:
            if r["limit_bytes"] == limit and r["plan"].startswith("fit"):
                lines.append(f"| `{r['plan']}`, {LABELS[limit]} | {cells(r)}")
    lines += ["", "| CPU decode, one token at a time | bytes | speed against dense f32 |"]
    lines.append("|---|---|---|")
    for name in sorted(p.name for p in EXPERIMENTS.glob("speed/cpu_decode.*.json")):
        results = read(name)
        for r in results["rows"][1:]:
            label = f"{r['encoding']}, jax {results['jax']}"
            lines.append(f"| {label} | {r['bytes']:,} | {r['times_dense']:.2f}× |")
    lines += ["", *pruned()]
    lines += ["", "| TPU v5e, by its compiler: linen, width 2048, decode | arguments | temp |"]
    lines.append("|---|---|---|")
    for r in read("tpu_memory.json")["rows"]:
        if r["model"].startswith("linen") and r["task"].startswith("decode"):
            sizes = f"{r['arguments_mib']:,.1f} MiB | {r['temp_mib']:,.1f} MiB"
            lines.append(f"| {r['encoding']} | {sizes} |")
    return "\n".join(lines) + "\n"


def pruned():
    """Lines of the tables of pruned BERTs, before and after a short retraining."""
    results = read("sparse_minilm.json")["rows"]
    columns = "bytes | Spearman | retrained | a sentence's time"
    lines = [f"| BERT (MiniLM-L6) on STS-B | {columns} |", "|---|---|---|---|---|"]
    retrained = {row["form"]: row for row in results if row["retrained"]}
    for row in results:
        if not row["retrained"]:
            scores = [f"{r['spearman']['mean']:.4f}" for r in (row, retrained[row["form"]])]
            time = f"{row['seconds_over_dense']:.1f}×"
            lines.append(f"| {row['form']} | {row['bytes']:,} | {' | '.join(scores)} | {time} |")
    lines += ["", "| MiniLM-L6 on SST-2 | bytes | pruned | retrained | with a teacher |"]
    lines.append("|---|---|---|---|---|")
    results = read("sst2_minilm.json")["rows"]
    for zeros in dict.fromkeys(r["zeros"] for r in sorted(results, key=lambda r: -r["bytes"])):
        rows = [row for row in results if row["zeros"] == zeros]
        shares = [f"{row['accuracy']:.1%}" for row in rows]
        shares += ["–"] * (3 - len(shares))
        lines.append(
            f"| {zeros} of the blocks zero | {rows[0]['bytes']:,} | {' | '.join(shares)} |"
        )
    return lines


def picture(path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    rows = list(quality())
    for index, label, marker in ((1, "budget, no data", "o-"), (2, "best uniform rounding", "s--")):
        points = sorted((row[index]["bytes"] / 1e6, row[index]["kl"]["mean"]) for row in rows)
        axes.plot(*zip(*points), marker, label=label)
    axes.set(yscale="log", xlabel="MB", ylabel="KL to the dense model, nats")
    axes.set_title("SmolLM2-135M, rotated (dense float32: 651 MB)", fontsize=10)
    axes.legend(frameon=False)
    axes.grid(alpha=0.3, which="both")
    figure.savefig(path, dpi=120, metadata={"Software": None})


def main():
    readme = EXPERIMENTS.parent / "README.md"
    before, after = readme.read_text().split(START)
    readme.write_text(before + START + table() + END + after.split(END)[1])
    picture(DOCS / "quality.png")


if __name__ == "__main__":
    main()
