"""One number of bytes for bits and ranks, beside each fixed split of it: bits_and_ranks.json.

    pip install -e ".[demo]"
    python experiments/quality/bits_and_ranks.py --model stories260K.bin --text wikitext2_valid.txt

Pairs of rank 16 beside the dense linears learn STEPS steps of ROWS x LENGTH tokens of the first
half of TEXT, by Adam at RATE. Then linears and pairs go into as many bytes as linears of 4 bits in
groups of 64 and pairs of rank 6 in f32 have. Of the tuned model `jm.stats` and `jm.fisher` read 64
rows of the first half, and `jm.bits_and_ranks` divides the bytes. A fixed split has one number of
bits for all weights, and the largest rank that fits. 64 windows of 256 tokens of the second half
measure what `jm.encode` and `jm.adapters.truncate` make of each; nothing learns after the choice. A
row that is in the file already is not measured again.
"""

import argparse
import hashlib
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmem as jm
from jaxmem.adapters import adapters, attach, truncate
from jaxmem.io.atomic import write_whole

PATH = pathlib.Path(__file__).with_suffix(".json")
LINEARS, GROUP, MOST_RANK = "layers/(attn|mlp)/.*kernel", 64, 16
STEPS, ROWS, LENGTH, RATE, WINDOWS, WIDTH = 300, 4, 128, 3e-3, 64, 256
SEEDS, BITS, RANKS = (0, 1, 2), (3, 4, 5, 6), (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16)
CODECS = [jm.Int(bits, group=GROUP) for bits in BITS]


class Study:
    """The model and its tokens."""

    def __init__(self, source: pathlib.Path, text: str):
        self.model = jm.models.load(source)
        self.dense = jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), self.model.params)
        encode = lambda part: np.asarray(self.model.tokenizer.encode(part).ids, np.int32)
        first, self.second = encode(text[: len(text) // 2]), encode(text[len(text) // 2 :])
        self.rows = first[: len(first) // LENGTH * LENGTH].reshape(-1, LENGTH)
        self.measure = jax.jit(self.loss)

    def loss(self, pairs, base, rows):
        logits = self.model.apply(attach(base, pairs), rows)[:, :-1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, rows[:, 1:]).mean()

    def trained(self, pairs, base, seed):
        chosen = np.random.default_rng(seed).integers(0, len(self.rows), (STEPS, ROWS))
        tx = optax.adam(RATE)

        @jax.jit
        def run(pairs, base, rows):
            def step(state, rows):
                updates, opt = tx.update(jax.grad(self.loss)(state[0], base, rows), state[1])
                return (optax.apply_updates(state[0], updates), opt), None

            return jax.lax.scan(step, (pairs, tx.init(pairs)), rows)[0][0]

        return run(pairs, base, jnp.asarray(self.rows[chosen]))

    def tuned(self, seed):
        """(pairs of the largest rank, moments, what an error of each weight's outputs costs)."""
        pairs = adapters(jax.random.key(seed), self.dense, MOST_RANK, LINEARS)
        pairs = self.trained(pairs, self.dense, seed)
        tuned = jm.decode(attach(self.dense, pairs))
        batches = [(jnp.asarray(self.rows[i : i + 8]),) for i in range(0, 64, 8)]
        stats = jm.stats(self.model.apply, tuned, batches)
        fisher = jm.fisher(self.model.apply, tuned, batches)
        leaves = dict(zip(jm.paths(tuned), jax.tree.leaves(tuned)))
        outputs = lambda w, h: jnp.einsum("lkn,lkj,ljn->l", w, h, w)  # fisher: of such an error
        cost = {p: float((fisher[p] / outputs(leaves[p], stats[p].second)).mean()) for p in pairs}
        return pairs, stats, cost

    def nbytes(self, plan, ranks, pairs):
        numbers = {p: (x["u"].size + x["v"].size) // MOST_RANK for p, x in pairs.items()}
        base = jm.nbytes(jax.eval_shape(lambda w: jm.encode(w, plan), self.dense))
        return base + 4 * sum(numbers[p] * rank for p, rank in ranks.items())

    def splits(self, pairs, stats, cost):
        """{row: (plan, ranks)}, all of at most as many bytes as 4 bits with rank 6."""
        of_bits = lambda codec: jm.choose(self.dense, {LINEARS: codec})
        uniform = lambda rank: dict.fromkeys(pairs, rank) if rank else {}
        most = self.nbytes(of_bits(jm.Int(4, group=GROUP)), uniform(6), pairs)
        options = {"codecs": CODECS, "ranks": RANKS, "stats": stats, "sensitivity": cost}
        found = {"budget": jm.bits_and_ranks(self.dense, pairs, most, **options)}
        for codec in CODECS:
            fits = [r for r in RANKS if self.nbytes(of_bits(codec), uniform(r), pairs) <= most]
            if fits:
                found[f"{codec.bits} bits"] = of_bits(codec), uniform(max(fits))
        return found

    def row(self, plan, ranks, pairs, stats, windows):
        base = jm.encode(self.dense, plan)
        small = truncate(pairs, ranks, stats=stats)
        bits = {path: codec.bits for path, codec in plan.items() if isinstance(codec, jm.Int)}
        loss = float(self.measure(small, jm.decode(base), windows))
        size = jm.nbytes(base) + jm.nbytes(small)
        return {"loss": loss, "bytes": size, "ranks": ranks, "bits": bits}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("model", "text"):
        parser.add_argument(f"--{name}", type=pathlib.Path, required=True)
    args = parser.parse_args()
    text = args.text.read_text(encoding="utf-8")
    study = Study(args.model, text)
    windows = jnp.asarray(study.second[: WINDOWS * WIDTH].reshape(WINDOWS, WIDTH))
    rows = json.loads(PATH.read_text())["rows"] if PATH.exists() else {}
    results = {
        "command": "python experiments/quality/bits_and_ranks.py --model MODEL --text TEXT",
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "seeds": SEEDS,
        "model": f"{args.model.stem} sha256 {hashlib.sha256(args.model.read_bytes()).hexdigest()}",
        "text_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "rank_16_beside_dense": (whole := {}),
        "rows": rows,
    }
    for seed in SEEDS:
        pairs, stats, cost = study.tuned(seed)
        whole[seed] = float(study.measure(pairs, study.dense, windows))
        for name, (plan, ranks) in study.splits(pairs, stats, cost).items():
            if f"{name}, seed {seed}" not in rows:
                row = study.row(plan, ranks, pairs, stats, windows)
                rows[f"{name}, seed {seed}"] = row
                write_whole(PATH, (json.dumps(results, indent=1) + "\n").encode())
                print(name, seed, row, flush=True)
    names = dict.fromkeys(key.split(",")[0] for key in rows)
    losses = lambda name: [rows[f"{name}, seed {s}"]["loss"] for s in SEEDS]
    results["mean_losses"] = {name: float(np.mean(losses(name))) for name in names}
    write_whole(PATH, (json.dumps(results, indent=1) + "\n").encode())
    print(results["mean_losses"])


if __name__ == "__main__":
    main()
