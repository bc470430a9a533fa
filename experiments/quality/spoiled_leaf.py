"""One layer in 2 bits is seen by a card's columns; a model beside itself differs in nothing.

    pip install -e ".[demo]"
    python experiments/quality/spoiled_leaf.py --data DATA --stories stories260K

Writes spoiled_leaf.json. The quick suites are of stories260K, a Llama of 260,032 weights, on its
training text, CrowS-Pairs and SST-2, and of MiniLM on SST-2 (a probe of 300 sentences) and STS-B.
`harm` of a column is a distance from the dense model, 0 for the same one; a column sees the spoiled
layer if the harm is more than three times that of the dense model in bfloat16. A model that is in
the file is not measured again.
"""

import argparse
import dataclasses
import hashlib
import json
import pathlib
import tempfile
from typing import Any

import jax
import numpy as np

import jaxmem as jm
from jaxmem.evaluation import Task, published_tasks

SPOILED_LAYER, BITS = 2, 2
KINDS = ("occlusion",)


def spoiled(model: jm.models.Model) -> jm.models.Model:
    """The model with every matrix of one layer as 2 bits leave it."""
    codec = jm.Int(BITS, group=None)

    def change(path: str, w: jax.Array) -> jax.Array:
        if not (path.startswith("layers/") and path.endswith("kernel")):
            return w
        return w.at[SPOILED_LAYER].set(codec.encode(w[SPOILED_LAYER]).decode())

    leaves, tree = jax.tree.flatten(model.params)
    changed = [change(*pair) for pair in zip(jm.paths(model.params), leaves, strict=True)]
    return dataclasses.replace(model, tensors=tree.unflatten(changed))


def harm(row: dict[str, Any], dense: dict[str, Any]) -> dict[str, float]:
    """{column: the distance of a row from the dense row}."""
    answers = lambda column: [
        x.get("total_variation", x.get("cosine_change", {"mean": 0.0}))
        for name, x in row.get(column, {}).items()
        if "metric" in x
    ]
    plain = lambda x: x["mean"] if isinstance(x, dict) else x
    mean = lambda xs: float(np.mean([plain(x) for x in xs])) if xs else None
    found = {column: mean(answers(column)) for column in ("tasks", "robustness")}
    found["loss"] = max(row["loss"]["kl"]["mean"], 0.0) if "loss" in row else None
    pairs = [(x, dense["calibration"][name]) for name, x in row["calibration"].items()]
    found["calibration"] = mean([abs(x["brier"] - y["brier"]) for x, y in pairs])
    ranks = [1 - x["rank_correlation"]["mean"] for x in row["attribution"].values()]
    found["attribution"] = max(mean(ranks), 0.0)
    found["fairness"] = mean([x["changed"] for x in row.get("fairness", {}).values()])
    return {column: number for column, number in found.items() if number is not None}


def with_short_training(task: Task) -> Task:
    """The task, whose probe is fitted on 300 sentences."""
    return dataclasses.replace(task, train=task.train[::10]) if task.train else task


def columns(model: jm.models.Model, tasks: list, text: str | None) -> dict[str, Any]:
    """The harm by column of the same model, of its bfloat16 and of the spoiled one."""
    found: dict[str, Any] = {}
    items = tempfile.mkdtemp()  # where the second card finds those of the dense model
    for name, other in (("same", model), ("spoiled", spoiled(model))):
        card = jm.card(other, model, data=tasks, text=text, explain=KINDS, out=items)
        rows = json.loads(card.to_json())["rows"]
        found[name] = harm(rows["model"], rows["dense"])
        found["bfloat16"] = harm(rows["dense in bfloat16"], rows["dense"])
    seen = [c for c, x in found["spoiled"].items() if x > 3 * found["bfloat16"][c]]
    return found | {"seen_by": seen, "differences_of_the_same": max(found["same"].values())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--stories", type=pathlib.Path, required=True)
    args = parser.parse_args()
    tasks = published_tasks(args.data)
    stories = (args.data / "tinystories_a.txt").read_text(encoding="utf-8")
    small = jm.models.load(args.stories / "stories260K.bin")
    sources = {
        "stories260K": (small, ["crows_pairs", "sst2"], stories),
        "minilm-l6": (jm.models.load("minilm-l6"), ["sst2_probe", "stsb"], None),
    }
    results: dict[str, Any] = {
        "command": "python experiments/quality/spoiled_leaf.py --data DATA --stories stories260K",
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "seed": None,
        "spoiled": f"layer {SPOILED_LAYER} in {BITS} bits",
        "models": {},
    }
    digest = hashlib.sha256((args.stories / "stories260K.bin").read_bytes()).hexdigest()
    results["stories260K_sha256"] = digest
    path = pathlib.Path(__file__).with_suffix(".json")
    if path.exists():
        results["models"] = json.loads(path.read_text(encoding="utf-8"))["models"]
    for name, (model, names, text) in sources.items():
        if name in results["models"]:
            continue
        few = [with_short_training(tasks[task]) for task in names]
        results["models"][name] = columns(model, few, text)
        print(name, json.dumps(results["models"][name], indent=1), flush=True)
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
