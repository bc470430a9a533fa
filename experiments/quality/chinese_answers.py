"""Chinese headlines and reviews by Gemma-3-270M, dense and in fewer bytes: chinese_answers.json.

    pip install -e ".[demo]"
    python experiments/quality/chinese_answers.py --data DATA

The model says which of 15 classes a headline of tnews is of, and whether a review of eprstmt is
positive, both of FewCLUE, by the class with the largest loglikelihood. The matrices of the blocks
are encoded, and the table of words is in 8 bits in all rows but the dense one. GPTQ is that of a
weighted search with 4 turns, 2:4 is SparseGPT's, refitted; both are calibrated on the first halves
of the sets, and items of the second halves are asked. Gemma cannot be rotated, and its weights were
once stored in 4 to 6 bits in groups of 32. A row that is in the file is not measured again. A
picture stands beside the JSON.
"""

import argparse
import dataclasses
import json
import pathlib
import re
import time

import jax
import jax.numpy as jnp
import numpy as np

import jaxmem as jm
from jaxmem.core.pictures import new_figure
from jaxmem.evaluation import answer_flips, published_tasks, score_task
from jaxmem.evaluation.confidence import Estimate

BLOCKS, TABLE, LENGTH, BATCH, WINDOWS = "layers.*/kernel", "embed.*/embedding", 256, 2, 12
ITEMS = {"tnews": 45, "eprstmt": 40}
CODECS = {
    "8 bits": jm.Int(8),
    "4.5 bits": jm.Int(4, group=32),
    "3.3 bits": jm.Int(3, group=64, symmetric=False),
}
ROWS = {"dense": None} | {f"{bits} RTN": codec for bits, codec in CODECS.items()}
ROWS |= {"2:4": jm.Refit(jm.SparseGPT(jm.NM(2, 4)))}
ROWS |= {f"{bits} GPTQ": jm.GPTQ(jm.Search(codec), turns=4) for bits, codec in CODECS.items()}


def windows(model: jm.models.Model, tasks: dict) -> list[tuple]:
    """Token ids (BATCH, LENGTH) of the first halves of the sets, which calibrate, by turns."""
    found = []
    for task in tasks.values():
        text = "\n".join(item["sentence"] for item in task.items[: len(task.items) // 2])
        ids = model.tokenizer.encode(text, add_special_tokens=False).ids
        starts = np.linspace(0, len(ids) - LENGTH, WINDOWS // len(tasks), dtype=int)
        found.append([[model.config.bos, *ids[i : i + LENGTH - 1]] for i in starts])
    rows = np.stack(found, axis=1).astype(np.int32).reshape(-1, BATCH, LENGTH)
    return [(jnp.asarray(row),) for row in rows]


def picture(rows: dict, path: pathlib.Path) -> None:
    """The share of right answers, and of answers that are the dense model's, by row."""
    axes = (figure := new_figure(7, 4)).subplots()
    for task, colour in zip(ITEMS, ("C0", "C1")):
        right = [row[task]["accuracy"]["mean"] for row in rows.values()]
        axes.plot(right, "o-", color=colour, label=f"{task}, right")
        same = [1 - row[task].get("changed", 0.0) for row in rows.values()]
        axes.plot(same, "s--", color=colour, label=f"{task}, as the dense model")
    axes.set_xticks(range(len(rows)), list(rows), rotation=30, ha="right")
    axes.set(ylabel="share of answers", ylim=(0, 1.02), title="Gemma-3-270M")
    axes.legend()
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--rows", default=".*", help="a regex of the rows' names")
    args = parser.parse_args()
    model = jm.models.load("gemma-3-270m")
    tasks = {name: task for name, task in published_tasks(args.data).items() if name in ITEMS}
    asked = {}
    for name, task in tasks.items():
        second = dataclasses.replace(task, items=task.items[len(task.items) // 2 :])
        asked[name] = second.sample(ITEMS[name])
    uses = jm.uses(model.apply, model.params, jax.ShapeDtypeStruct((1, 8), jnp.int32))
    path = pathlib.Path(__file__).with_suffix(".json")
    results = {"command": "python experiments/quality/chinese_answers.py --data DATA"}
    results |= {"jax": jax.__version__, "backend": jax.default_backend(), "seed": None}
    results |= {"model": model.source, "calibrated_on_tokens": WINDOWS * LENGTH}
    results |= {"items": ITEMS, "rows": {}}
    results |= {"rows": json.loads(path.read_text("utf-8"))["rows"]} if path.exists() else {}
    before, stats = {name: score_task(task, model) for name, task in asked.items()}, None
    for name, codec in ROWS.items():
        if name in results["rows"] or not re.fullmatch(args.rows, name):
            continue
        start, params, row = time.process_time(), model.params, {"bytes": jm.nbytes(model.params)}
        if codec is not None:
            plan = jm.choose(model.params, {BLOCKS: codec, TABLE: jm.Int(8)})
            if "RTN" not in name and stats is None:
                stats = jm.stats(model.apply, model.params, windows(model, tasks))
            given = None if "RTN" in name else stats
            encoded = jm.encode(model.params, plan, uses=uses, stats=given)
            params, row = jax.jit(jm.decode)(encoded), {"bytes": jm.nbytes(encoded)}
            row["cpu_seconds_to_make"] = round(time.process_time() - start, 1)
        for task, items in asked.items():
            found = score_task(items, model, params=params)
            right = [item["score"] for item in found.items]
            row[task] = {"accuracy": vars(Estimate.of(right, 0.0, 1.0))}
            if codec is not None:
                row[task] |= dataclasses.asdict(answer_flips(before[task].items, found.items))
        results["rows"][name] = row
        print(name, json.dumps(row), flush=True)
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    picture(results["rows"], path.with_suffix(".png"))


if __name__ == "__main__":
    main()
