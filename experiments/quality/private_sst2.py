"""Adapters of an int8 MiniLM learn SST-2 in private, beside others that do not: private_sst2.json.

    pip install -e ".[demo,privacy]"
    python experiments/quality/private_sst2.py --train sst2_train.tsv --dev sst2_dev.tsv

Pairs of rank 4 beside q and v, and a linear of the mean hidden vector, take 100 steps of Adam on
sentences of at most 24 tokens; both rows see the same batches. Of the training sentences 400 are
canaries: their labels are tossed, and so is which of them take part. `audited_epsilon` is what
their losses prove of the pairs beside int8 weights, and of all in 4 bits; 0 proves nothing. Peaks
of a step are those of the compiler for one TPU v5e. Accuracy is that on the whole dev set. A row
that is in the file is not measured again.
"""

import argparse
import hashlib
import json
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sst2_minilm import accuracy, classifier, read_sentences

import jaxmem as jm
from jaxmem.io.atomic import write_whole

SEED, WIDTH, RANK, RATE, CANARIES = 0, 24, 4, 3e-3, 400
EPSILON, DELTA, STEPS, BATCH, MICRO = 8.0, 1e-5, 100, 96, 8
BLOCKS, PAIRS = "layers/.*/kernel", "layers/attn/(q|v)/kernel"
PATH = pathlib.Path(__file__).with_suffix(".json")


class Task:
    """The sentences, the frozen model, and the loss of rows of {"ids", "labels"}."""

    def __init__(self, model, path: pathlib.Path):
        ids, labels = read_sentences(model, path)
        chosen = [i for i, sentence in enumerate(ids) if len(sentence) <= WIDTH]
        self.ids = np.array([ids[i] + [0] * (WIDTH - len(ids[i])) for i in chosen], np.int32)
        self.labels = labels[chosen]
        random = np.random.default_rng(SEED)
        canaries = random.permutation(len(self.ids))[:CANARIES]
        self.labels[canaries] = random.integers(0, 2, CANARIES)
        takes_part = random.integers(0, 2, CANARIES).astype(bool)
        self.seen, self.unseen = canaries[takes_part], canaries[~takes_part]
        self.examples = np.setdiff1d(np.arange(len(self.ids)), self.unseen)
        plan = jm.choose(model.params, {BLOCKS: jm.Int(8)})
        uses = jm.uses(model.apply, model.params, self.ids[:1], self.ids[:1] != 0)
        self.base = jm.encode(model.params, plan, uses=uses)
        self.apply = classifier(model)
        head = {"kernel": jnp.zeros((model.config.width, 2)), "bias": jnp.zeros(2)}
        pairs = jm.adapters.adapters(jax.random.key(SEED), self.base, RANK, PAIRS)
        self.start = {"pairs": pairs, "head": head}

    def rows(self, numbers) -> dict:
        return {"ids": jnp.asarray(self.ids[numbers]), "labels": jnp.asarray(self.labels[numbers])}

    def whole(self, base, learned) -> dict:
        bert = jm.adapters.attach(base, learned["pairs"])
        return {"bert": bert, "head": learned["head"]}

    def losses(self, params, rows):
        logits = jm.lift(self.apply)(params, rows["ids"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, rows["labels"])

    def gradient(self, privacy, is_private: bool):
        """A function (base, key, learned, rows, padding) -> the gradient of a step."""

        def gradient(base, key, learned, rows, padding):
            loss = lambda learned, rows: self.losses(self.whole(base, learned), rows).sum()
            if is_private:
                return jm.train.private_gradient(loss, privacy)(key, learned, rows, padding)
            of_row = lambda x: jnp.where(padding, 0, self.losses(self.whole(base, x), rows))
            return jax.grad(lambda x: of_row(x).sum() / BATCH)(learned)

        return gradient


def measured(task: Task, privacy, dev, is_private: bool) -> dict:
    """What one way of training gives."""
    optimizer, gradient = optax.adam(RATE), task.gradient(privacy, is_private)

    def step(base, key, state, rows, padding):
        learned, moments = state
        slope = gradient(base, key, learned, rows, padding)
        updates, moments = optimizer.update(slope, moments, learned)
        return optax.apply_updates(learned, updates), moments

    state, keys = (task.start, optimizer.init(task.start)), jax.random.key(SEED + 1)
    run, begin = jax.jit(step), time.perf_counter()
    for i, (numbers, padding) in enumerate(privacy.batches(SEED)):
        args = jax.random.fold_in(keys, i), state, task.rows(task.examples[numbers]), padding
        state = run(task.base, *args)
        if i % 10 == 9:
            print("private" * is_private, "step", i + 1, time.strftime("%X"), flush=True)
    found = {"seconds": round(time.perf_counter() - begin, 1)}
    shapes = jax.eval_shape(lambda *x: x, task.base, *args)
    found["peak_bytes"] = jm.memory(step, *shapes, device="tpu v5e:1x1").peak
    whole = task.whole(task.base, state[0])
    dense = jax.tree.map(jnp.float32, jm.decode(whole))
    four = jm.encode(dense, jm.choose(dense, {f"bert/{BLOCKS}": jm.Int(4, group=64)}))
    for name, params in {"int8 and pairs": whole, "all in 4 bits": four}.items():
        of = lambda numbers, p=params: np.asarray(jax.jit(task.losses)(p, task.rows(numbers)))
        score = accuracy(jm.lift(task.apply), params, *dev)
        proved = jm.train.audited_epsilon(of(task.seen), of(task.unseen), delta=DELTA)
        found[name] = {"accuracy": score, "audited_epsilon": proved}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("train", "dev"):
        parser.add_argument(f"--{name}", type=pathlib.Path, required=True)
    args = parser.parse_args()
    model = jm.models.load("minilm-l6")
    task, dev = Task(model, args.train), read_sentences(model, args.dev)
    sizes = {"examples": len(task.examples), "batch": BATCH, "steps": STEPS, "micro": MICRO}
    privacy = jm.train.Privacy(EPSILON, DELTA, **sizes)
    rows = json.loads(PATH.read_text())["rows"] if PATH.exists() else {}
    results = {
        "command": "python experiments/quality/private_sst2.py --train FILE --dev FILE",
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "seed": SEED,
        "model": model.source,
        "train_sha256": hashlib.sha256(args.train.read_bytes()).hexdigest(),
        **sizes,
        "delta": DELTA,
        "noise": privacy.noise,
        "epsilon": privacy.spent(STEPS),
        "canaries": {"seen": len(task.seen), "unseen": len(task.unseen)},
        "rows": rows,
    }
    for name in ("not private", "private"):
        if name not in rows:
            rows[name] = measured(task, privacy, dev, name == "private")
            write_whole(PATH, (json.dumps(results, indent=1) + "\n").encode())
            print(name, rows[name], flush=True)


if __name__ == "__main__":
    main()
