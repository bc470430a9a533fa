"""SST-2, STS-B and ARC-Easy learnt one after the other by MiniLM: continual_minilm.json.

    pip install -e ".[demo]"
    python experiments/quality/continual_minilm.py --data DIR

Each task ranks pairs of texts by one score, a linear of the mean hidden vector of minilm-l6: a
positive sentence before a negative one (SST-2), two sentences that mean the same before two that
do not (STS-B, scores that differ by 1.5), a question with its answer before the question with
another one (ARC-Easy). Pairs of rank 2 beside q and v, and one beside the score, learn STEPS steps
of BATCH pairs of texts of each task, by Adam. Accuracy is the share of 300 other pairs of texts in
the right order; forgetting is how much lower it is at the end than after the task itself, the mean
of the first two tasks. `bytes` are all that is kept of earlier tasks: a reservoir (half of each
batch is then drawn from it), a Fisher and weights (EWC), or directions of old adapters (O-LoRA,
whose old adapters are merged into the base). A row that is in the file is not run again.
"""

import argparse
import csv
import functools
import json
import pathlib
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmem as jm
from jaxmem.adapters import adapters, attach, merge
from jaxmem.io.atomic import write_whole
from jaxmem.train import adapter_directions, orthogonality

PATH = pathlib.Path(__file__).with_suffix(".json")
STEPS, BATCH, SEED, HELD_OUT, WIDTHS = 60, 12, 0, 300, (24, 40, 64, 96)
RATE, FISHER_ROWS = 5e-3, 96
METHODS = {  # how many bytes at most, and factors of EWC and O-LoRA
    "naive": {},
    "replay 64 KiB": {"most": 65536},
    "EWC 1e3": {"most": 65536, "elastic": 1e3},
    "O-LoRA 1, 0.5": {"rank": 1, "orthogonal": 0.5},
    "replay 16 KiB": {"most": 16384},
    "replay 4 KiB": {"most": 4096},
    "EWC 1e5": {"most": 65536, "elastic": 1e5},
    "O-LoRA 2, 0.5": {"rank": 2, "orthogonal": 0.5},
}


def texts_of(data: pathlib.Path) -> dict[str, list[tuple[str, str]]]:
    """{task: pairs of texts, of which the first is the better one}, in random order."""
    random = np.random.default_rng(SEED)
    rows = [x.rsplit("\t", 1) for x in (data / "sst2_train.tsv").read_text().splitlines()]
    sides = [random.permutation([t for t, label in rows if label == x]) for x in "10"]
    tasks = {"SST-2": list(zip(*sides, strict=False))}
    with open(data / "stsb_en_train.csv", newline="") as file:
        rows = [(f"{a} [SEP] {b}", float(s)) for a, b, s in csv.reader(file)]
    both = [(rows[i], rows[j]) for i, j in random.permutation(len(rows))[:5748].reshape(-1, 2)]
    both = [sorted(x, key=lambda row: -row[1]) for x in both]
    tasks["STS-B"] = [(a, b) for (a, s), (b, t) in both if s - t >= 1.5]
    tasks["ARC-Easy"] = []
    for row in json.loads((data / "tasks/ARC-Easy.json").read_text()):
        question, *rest = re.split(
            r"\n\n?Answer\d: | Answer\d: |\n\nAnswer format", row["instruction"]
        )
        answers, right = rest[:-1], int(row["answer"].removeprefix("answer")) - 1
        wrong = [x for i, x in enumerate(answers) if i != right]
        if wrong:
            question = question.split("question: ", 1)[-1]
            said = (answers[right], wrong[random.integers(len(wrong))])
            tasks["ARC-Easy"].append(tuple(f"{question} [SEP] {x}" for x in said))
    return tasks


def padded(both: list[tuple[list[int], list[int]]]) -> jax.Array:
    """(pairs, 2, width) ids; 0 is padding."""
    longest = max(len(ids) for pair in both for ids in pair)
    ids = np.zeros((len(both), 2, next(w for w in WIDTHS if w >= longest)), np.int32)
    for row, pair in zip(ids, both):
        for side, x in zip(row, pair):
            side[: len(x)] = x
    return jnp.asarray(ids)


class Ranker:
    """The model with its score, and the tasks as token ids."""

    def __init__(self, data: pathlib.Path):
        self.model = model = jm.models.load("minilm-l6")
        model.tokenizer.no_padding()
        model.tokenizer.enable_truncation(WIDTHS[-1])
        encode = lambda texts: [x.ids for x in model.tokenizer.encode_batch(list(texts))]
        self.tasks = {k: list(zip(*map(encode, zip(*x)))) for k, x in texts_of(data).items()}
        head = jax.random.normal(jax.random.key(SEED), (model.config.width, 1)) / 8
        self.start = {"bert": model.params, "head": {"kernel": head}}
        self.run = jax.jit(lambda pairs, base, ids: self.scores(attach(base, pairs), ids))

    def fresh(self, base, seed):
        ranks = {".*/attn/[qv]/kernel": 2, "head/kernel": 1}
        return adapters(jax.random.key(seed), base, ranks)

    def scores(self, params, ids):
        rows = ids.reshape(-1, ids.shape[-1])
        mask = rows != 0
        hidden = self.model.apply(params["bert"], rows, mask) * mask[..., None]
        mean = hidden.sum(1) / mask.sum(1, keepdims=True)
        score = jm.lift(lambda p, x: x @ p)(params["head"]["kernel"], mean)
        return score.reshape(ids.shape[:2])

    def loss(self, pairs, base, ids):
        both = self.scores(attach(base, pairs), ids)
        return jax.nn.softplus(both[:, 1] - both[:, 0]).mean()

    def accuracy(self, pairs, base, task):
        rows = sorted(self.tasks[task][:HELD_OUT], key=lambda x: max(map(len, x)))
        parts = (padded(rows[i : i + 20]) for i in range(0, HELD_OUT, 20))
        both = np.concatenate([self.run(pairs, base, ids) for ids in parts])
        return float((both[:, 0] > both[:, 1]).mean())

    def learn(self, task, base, pairs, *, penalty=lambda pairs: 0.0, reservoir=(), seed=0):
        """The pairs after the task, to whose loss `penalty(pairs)` is added."""
        tx = optax.adam(optax.cosine_decay_schedule(RATE, STEPS))

        @jax.jit
        def step(state, base, ids):
            loss = lambda pairs: self.loss(pairs, base, ids) + penalty(pairs)
            updates, opt = tx.update(jax.grad(loss)(state[0]), state[1])
            return optax.apply_updates(state[0], updates), opt

        state, random = (pairs, tx.init(pairs)), np.random.default_rng(SEED + seed)
        for _ in range(STEPS):
            old = reservoir.sample(BATCH // 2, random) if len(reservoir) else []
            rows = random.integers(HELD_OUT, len(self.tasks[task]), BATCH - len(old))
            old = [(x["ids"][: x["target"]], x["ids"][x["target"] :]) for x in old]
            state = step(state, base, padded([self.tasks[task][r] for r in rows] + old))
        return state[0]

    def learn_all(self, pairs, *, most=0, elastic=0.0, orthogonal=0.0, rank=0):
        """The row of a method, whose pairs have learnt the first task."""
        base, options, kept = self.start, {}, 0
        memory = None
        if most:
            sizes = {"vocabulary": self.model.config.vocab, "elastic": elastic, "seed": SEED}
            memory = jm.training.ContinualMemory(most, pairs, **sizes)
            options = {"penalty": memory.penalty, "reservoir": memory.reservoir}
        directions, after = None, {}
        *earlier, last = self.tasks
        for i, task in enumerate(self.tasks):
            if i:  # the first task is the same for all methods
                pairs = self.learn(task, base, pairs, seed=i, **options)
            after[task] = self.accuracy(pairs, base, task)
            rows = self.tasks[task][HELD_OUT:]
            if memory and task != last:
                loss = functools.partial(lambda base, p, ids: self.loss(p, base, ids), base)
                examples = [] if elastic else [(np.array(a + b), len(a)) for a, b in rows]
                memory.learnt(pairs, loss, padded(rows[:FISHER_ROWS]), examples)
                kept = memory.nbytes
            if rank and task != last:
                layers = {path: pair for path, pair in pairs.items() if "attn" in path}
                directions = adapter_directions(layers, rank, before=directions)
                base, kept = merge(base, pairs).params, jm.nbytes(directions)
                pairs = self.fresh(base, i + 1)
                options = {"penalty": functools.partial(_orthogonal, orthogonal, directions)}
        at_end = {task: self.accuracy(pairs, base, task) for task in self.tasks}
        found = {"after_its_task": after, "at_the_end": at_end, "bytes": kept}
        found["forgetting"] = float(np.mean([after[task] - at_end[task] for task in earlier]))
        return found | {"mean_accuracy": float(np.mean(list(at_end.values())))}


def _orthogonal(factor, directions, pairs):
    return factor * orthogonality({path: pairs[path] for path in directions}, directions)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    args = parser.parse_args()
    ranker = Ranker(args.data)
    results = {
        "command": "python experiments/quality/continual_minilm.py --data DIR",
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "seed": SEED,
        "model": ranker.model.source,
        "pairs_of_texts": {task: len(rows) for task, rows in ranker.tasks.items()},
        "rows": json.loads(PATH.read_text())["rows"] if PATH.exists() else {},
    }
    first = ranker.learn("SST-2", ranker.start, ranker.fresh(ranker.start, 0))
    for name in args.methods:
        if name not in results["rows"]:
            begin = time.perf_counter()
            results["rows"][name] = ranker.learn_all(first, **METHODS[name])
            results["rows"][name]["seconds"] = round(time.perf_counter() - begin, 1)
            print(name, results["rows"][name], flush=True)
            write_whole(PATH, (json.dumps(results, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
