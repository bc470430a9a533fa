"""Embeddings of STS-B dev (minilm-l6) twice through `jm.reuse`: result_reuse.json.

    pip install -e ".[demo]"
    python experiments/speed/result_reuse.py --pairs stsb_en_dev.csv

Sentences are padded to the smallest of WIDTHS tokens, BATCH of them at a time. The first pass
computes; sentences that come again are found in it already. The second pass is in the same process,
from memory; the third in a new `Reuse` on the same folder, from disk. Vectors are kept in float32,
and those of the first FEW sentences in 8 bits. `direct` calls the model on the same FEW sentences
without keeping anything. Programs are compiled before a pass is timed.
"""

import argparse
import csv
import json
import pathlib
import sys
import tempfile
import time

import jax
import numpy as np

import jaxmem as jm
from jaxmem.architectures import bert

WIDTHS, BATCH, FEW = (16, 32, 64), 64, 256


def read_sentences(path: pathlib.Path) -> list[str]:
    rows = csv.reader(path.read_text(encoding="utf-8").splitlines())
    return [sentence for a, b, _ in rows for sentence in (a, b)]


def batches(model, sentences: list[str]) -> list[tuple[np.ndarray, np.ndarray]]:
    """(ids, mask), both (n, width), of the sentences of each width."""
    model.tokenizer.enable_truncation(WIDTHS[-1])
    model.tokenizer.no_padding()
    rows = [encoding.ids for encoding in model.tokenizer.encode_batch(sentences)]
    found = []
    for shortest, width in zip((0, *WIDTHS), WIDTHS):
        chosen = [row for row in rows if shortest < len(row) <= width]
        ids, mask = np.zeros((len(chosen), width), np.int32), np.zeros((len(chosen), width), bool)
        for i, row in enumerate(chosen):
            ids[i, : len(row)], mask[i, : len(row)] = row, True
        found += [(ids, mask)] if chosen else []
    return found


def timed(fn, params, data: list) -> tuple[np.ndarray, float]:
    start = time.perf_counter()
    out = np.concatenate([np.asarray(fn(params, *batch)) for batch in data])
    return out, time.perf_counter() - start


def passes(name: str, codec, embed, params, data: list, folder: pathlib.Path) -> tuple[dict, list]:
    """(figures, vectors) of three passes."""
    options = {"memory": 2**26, "disk": 2**27, "path": folder, "codec": codec}
    row, vectors = {"codec": name, "sentences": sum(len(ids) for ids, _ in data)}, []
    results = jm.Reuse(**options)
    cached = jm.reuse(embed, results, on=(1, 2), sizes=(BATCH,))
    for ids, mask in data:  # a row that no sentence has: this compiles
        cached(params, np.ones_like(ids[:1]), mask[:1])
    for label in ("first", "second", "restarted"):
        if label == "restarted":
            del results, cached
            results = jm.Reuse(**options)
            cached = jm.reuse(embed, results, on=(1, 2), sizes=(BATCH,))
        before = results.stats()
        out, seconds = timed(cached, params, data)
        stats = results.stats()
        hits, misses = stats.hits - before.hits, stats.misses - before.misses
        figures = {"seconds": seconds, "hits": hits, "distinct_misses": misses}
        figures |= {"hit_rate": hits / (hits + misses), "memory_bytes": stats.memory}
        row[label] = figures | {"disk_bytes": stats.disk}
        vectors.append(out)
    row["files_bytes"] = sum(file.stat().st_size for file in folder.glob("??/*"))
    row["files"] = stats.files
    row["times_faster"] = row["first"]["seconds"] / row["second"]["seconds"]
    row["times_faster_restarted"] = row["first"]["seconds"] / row["restarted"]["seconds"]
    row["differing_numbers"] = int(sum((v != vectors[0]).sum() for v in vectors[1:]))
    return row, vectors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=pathlib.Path, required=True)
    args = parser.parse_args()
    model = jm.models.load("minilm-l6")
    sentences = read_sentences(args.pairs)
    embed = lambda params, ids, mask: bert.embed(model.apply(params, ids, mask), mask)
    few = batches(model, sentences[:FEW])
    run = jax.jit(embed)
    whole = lambda params, ids, mask: np.concatenate(
        [run(params, ids[i : i + BATCH], mask[i : i + BATCH]) for i in range(0, len(ids), BATCH)]
    )
    direct, _ = timed(whole, model.params, few)  # compiles
    rows = []
    for name, codec, data in (
        ("Int(8)", jm.Int(8), few),
        ("float32", None, batches(model, sentences)),
    ):
        with tempfile.TemporaryDirectory() as folder:
            row, vectors = passes(name, codec, embed, model.params, data, pathlib.Path(folder))
        if data is few:
            row["direct_seconds"] = timed(whole, model.params, few)[1]
            row["largest_difference_from_direct"] = float(np.abs(vectors[0] - direct).max())
        rows.append(row)
        print(json.dumps(row, indent=1), flush=True)
    results = {
        "command": " ".join(["python", "experiments/speed/result_reuse.py", *sys.argv[1:]]),
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "model": model.source,
        "widths": WIDTHS,
        "batch": BATCH,
        "rows": rows,
    }
    path = pathlib.Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
