"""Embeddings of STS-B dev (minilm-l6) twice through `jm.reuse`: result_reuse.json.

    pip install -e ".[demo]"
    python experiments/speed/result_reuse.py --pairs stsb_en_dev.csv

Sentences are padded to WIDTH tokens. The first pass computes; sentences that come again are found
in it already. The second pass is in the same process, from memory; the third in a new `Reuse` on
the same folder, from disk. Vectors are kept in float32, and then in 8 bits. `direct` calls the
model on all sentences, in batches of the same size, without keeping anything.
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

WIDTH, BATCH = 64, 64


def read_sentences(path: pathlib.Path) -> list[str]:
    rows = csv.reader(path.read_text(encoding="utf-8").splitlines())
    return [sentence for a, b, _ in rows for sentence in (a, b)]


def padded(model, sentences: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """(ids, mask), both (sentences, WIDTH)."""
    model.tokenizer.enable_truncation(WIDTH)
    model.tokenizer.enable_padding(length=WIDTH)
    rows = model.tokenizer.encode_batch(sentences)
    ids = np.array([row.ids for row in rows], np.int32)
    return ids, np.array([row.attention_mask for row in rows], bool)


def timed(fn, *args) -> tuple[np.ndarray, float]:
    start = time.perf_counter()
    out = np.asarray(fn(*args))
    return out, time.perf_counter() - start


def passes(name: str, codec, embed, model, ids, mask, folder: pathlib.Path) -> tuple[dict, list]:
    """(figures, vectors) of three passes."""
    options = {"memory": 2**26, "disk": 2**27, "path": folder, "codec": codec}
    row, vectors = {"codec": name}, []
    results = jm.Reuse(**options)
    cached = jm.reuse(embed, results, on=(1, 2), sizes=(BATCH,))
    for label in ("first", "second", "restarted"):
        if label == "restarted":
            del results, cached
            results = jm.Reuse(**options)
            cached = jm.reuse(embed, results, on=(1, 2), sizes=(BATCH,))
        before = results.stats()
        out, seconds = timed(cached, model.params, ids, mask)
        stats = results.stats()
        hits, misses = stats.hits - before.hits, stats.misses - before.misses
        figures = {"seconds": seconds, "hits": hits, "misses": misses}
        figures |= {"hit_rate": hits / (hits + misses), "memory_bytes": stats.memory}
        row[label] = figures | {"disk_bytes": stats.disk, "seconds_saved": stats.seconds_saved}
        vectors.append(out)
    files = sum(file.stat().st_size for file in folder.glob("??/*"))
    row["files_bytes"], row["distinct"] = files, stats.files
    row["times_faster"] = row["first"]["seconds"] / row["second"]["seconds"]
    row["times_faster_restarted"] = row["first"]["seconds"] / row["restarted"]["seconds"]
    row["differing_numbers"] = int(sum((v != vectors[0]).sum() for v in vectors[1:]))
    return row, vectors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=pathlib.Path, required=True)
    args = parser.parse_args()
    model = jm.models.load("minilm-l6")
    ids, mask = padded(model, read_sentences(args.pairs))
    embed = lambda params, ids, mask: bert.embed(model.apply(params, ids, mask), mask)
    run = jax.jit(embed)
    batches = [slice(i, i + BATCH) for i in range(0, len(ids) - BATCH + 1, BATCH)]
    whole = lambda: np.concatenate([run(model.params, ids[b], mask[b]) for b in batches])
    np.asarray(run(model.params, ids[:BATCH], mask[:BATCH]))  # compiles
    direct, direct_seconds = timed(whole)
    rows = []
    for name, codec in (("float32", None), ("Int(8)", jm.Int(8))):
        with tempfile.TemporaryDirectory() as folder:
            row, vectors = passes(name, codec, embed, model, ids, mask, pathlib.Path(folder))
        row["largest_difference"] = float(np.abs(vectors[0][: len(direct)] - direct).max())
        rows.append(row)
        print(json.dumps(row, indent=1), flush=True)
    results = {
        "command": " ".join(["python", "experiments/speed/result_reuse.py", *sys.argv[1:]]),
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "model": model.source,
        "sentences": len(ids),
        "width": WIDTH,
        "direct_seconds": direct_seconds,
        "direct_sentences": len(direct),
        "rows": rows,
    }
    path = pathlib.Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
