"""Semantic search and sentiment with MiniLM in fewer bytes: writes search_sentiment.json.

    pip install -e ".[demo]"
    python experiments/quality/search_sentiment.py --data DATA

Search: sentences of STS-B's dev set ask for the sentences that people called their equal (a score
of 4 or more) among those of 400 pairs; nDCG@10, and the overlap of the first ten with the dense
model's. Sentiment: a logistic probe, fitted once on the dense model's vectors of 600 sentences of
SST-2's train set and held fixed, answers 400 of the dev set. The block linears are encoded; GPTQ
and pruning read 640 sentences of STS-B's train set. A picture stands beside the JSON. A row that is
in the file is not measured again.
"""

import argparse
import csv
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

import jaxmem as jm
from jaxmem.core.pictures import new_figure
from jaxmem.evaluation import Task, answer_flips, calibration_of, published_tasks, score_task
from jaxmem.evaluation.embeddings import sentence_embedder
from jaxmem.evaluation.ranking_scores import overlap
from jaxmem.evaluation.task_scores import fitted_probe

BLOCKS, TOKENS, PAIRS = "layers/.*/kernel", (8, 12, 16, 20, 24), 400
best = lambda codec: jm.GPTQ(jm.Search(codec), turns=4)
CODECS = {
    "8 bits RTN": jm.Int(8),
    "4.5 bits RTN": jm.Int(4, group=32),
    "4.5 bits GPTQ": best(jm.Int(4, group=32)),
    "3.3 bits RTN": jm.Int(3, group=64, symmetric=False),
    "3.3 bits GPTQ": best(jm.Int(3, group=64, symmetric=False)),
    "2:4 SparseGPT": jm.Refit(jm.SparseGPT(jm.NM(2, 4))),
}


def pairs_of(path: pathlib.Path) -> list[tuple[str, str, float]]:
    rows = csv.reader(path.read_text(encoding="utf-8").splitlines())
    return [(a, b, float(score)) for a, b, score in rows]


def search_task(path: pathlib.Path) -> Task:
    """Queries and the numbers of the documents that answer them."""
    pairs = pairs_of(path)
    pairs = [pairs[i * len(pairs) // PAIRS] for i in range(PAIRS)]
    documents = {str(i): b for i, (_, b, _) in enumerate(pairs)}
    items = tuple(
        {"query": a, "answer": [str(i)]} for i, (a, _, score) in enumerate(pairs) if score >= 4
    )
    return Task("search", "retrieval", items, "{query}", documents=documents)


def calibration(model: jm.models.Model, path: pathlib.Path) -> list[tuple]:
    """Sentences of equal lengths, so that no padding is counted."""
    model.tokenizer.no_truncation()
    model.tokenizer.no_padding()
    sentences = [sentence for a, b, _ in pairs_of(path) for sentence in (a, b)]
    ids = [encoding.ids for encoding in model.tokenizer.encode_batch(sentences)]
    few = [np.array([i for i in ids if len(i) == n][:128], np.int32) for n in TOKENS]
    return [(jnp.asarray(rows), jnp.ones(rows.shape, bool)) for rows in few]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=pathlib.Path, required=True)
    args = parser.parse_args()
    model = jm.models.load("minilm-l6")
    run = sentence_embedder(model)
    search = search_task(args.data / "stsb_en_dev.csv")
    sentiment = published_tasks(args.data)["sst2_probe"].sample(400)
    train = sentiment.train[:: len(sentiment.train) // 600]
    sentiment = Task(
        "sentiment", "probe", sentiment.items, "{sentence}", answer="label", train=train
    )
    embed = lambda params: lambda texts: run(params, texts)
    probe = fitted_probe(sentiment, embed(model.params))
    score = lambda task, params: score_task(task, model, embed=embed(params), probe=probe)
    dense = {task.name: score(task, model.params) for task in (search, sentiment)}
    batches = calibration(model, args.data / "stsb_en_train.csv")
    stats = jm.stats(model.apply, model.params, batches)
    uses = jm.uses(model.apply, model.params, *batches[0])
    path = pathlib.Path(__file__).with_suffix(".json")
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else {}

    def row(params, found) -> dict:
        blocks = [x for x in jax.tree.leaves(params, is_leaf=jm.is_encoded) if jm.is_encoded(x)]
        first = [overlap(a["answer"], b["answer"])
                 for a, b in zip(dense["search"].items, found["search"].items)]  # fmt: skip
        flips = answer_flips(dense["sentiment"].items, found["sentiment"].items)
        return {
            "bytes": jm.nbytes(params),
            "bits_per_weight": 8 * jm.nbytes(blocks) / max(1, sum(x.size for x in blocks)) or None,
            "search": {"ndcg@10": found["search"].mean, "overlap_of_10": float(np.mean(first))},
            "sentiment": {
                "accuracy": found["sentiment"].mean,
                "changed": flips.changed,
                "ece": calibration_of(found["sentiment"].items).ece,
            },
        }

    rows.setdefault("dense", row(model.params, dense))
    for name, codec in CODECS.items():
        if name in rows:
            continue
        plan = jm.choose(model.params, {BLOCKS: codec})
        needs = None if "RTN" in name else stats
        encoded = jm.encode(model.params, plan, uses=uses, stats=needs)
        params = jm.decode(encoded)
        rows[name] = row(encoded, {t.name: score(t, params) for t in (search, sentiment)})
        print(name, json.dumps(rows[name]), flush=True)
        results = {
            "command": "python experiments/quality/search_sentiment.py --data DATA",
            "jax": jax.__version__,
            "backend": jax.default_backend(),
            "seed": None,
            "model": model.source,
            "queries": len(search.items),
            "documents": len(search.documents),
            "rows": rows,
        }
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    figure = new_figure(6, 4)
    axes = figure.subplots()
    for (task, number), label in {
        ("search", "overlap_of_10"): "search: first ten as dense",
        ("sentiment", "changed"): "sentiment: answers unchanged",
    }.items():
        values = [rows[name][task][number] for name in CODECS]
        axes.plot([v if task == "search" else 1 - v for v in values], "o-", label=label)
    axes.set_xticks(range(len(CODECS)), list(CODECS), rotation=30, ha="right")
    axes.set(ylabel="share", title="MiniLM-L6")
    axes.legend()
    figure.savefig(path.with_suffix(".png"), dpi=100)


if __name__ == "__main__":
    main()
