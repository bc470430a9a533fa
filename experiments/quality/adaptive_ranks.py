"""AdaLoRA at an average rank of 8 beside LoRA of rank 8, at three seeds: adaptive_ranks.json.

    pip install -e ".[demo]"
    python experiments/quality/adaptive_ranks.py --model stories260K.bin --text wikitext2_valid.txt

The base is dense and frozen. Pairs beside its linears learn the first half of TEXT in STEPS steps
of ROWS x LENGTH tokens by Adam, at each of the RATES; 64 windows of 256 tokens of the second half
measure. AdaLoRA begins at rank 12, and drops triples from step 30 to 200, until at most as many
numbers as in pairs of rank 8 are left; `jm.adapters.shrink` then makes its arrays smaller.
`file_bytes` are of the pairs in a file of `jm.save`; `step` is what XLA says of a training step
with these pairs, of the first seed: bytes of its arguments and of its temporaries, and flops. A row
that is in the file already is not measured again.
"""

import argparse
import hashlib
import itertools
import json
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmem as jm
from jaxmem.adapters import adapters, adaptive_rank, attach, orthogonality, shrink, triples
from jaxmem.io.atomic import write_whole

PATH = pathlib.Path(__file__).with_suffix(".json")
LINEARS, RANK, FIRST = "layers/(attn|mlp)/.*kernel", 8, 12
STEPS, ROWS, LENGTH, WINDOWS, WIDTH = 300, 4, 128, 64, 256
SEEDS = (0, 1, 2)
RATES = (1e-3, 3e-3, 1e-2)


def make_loss(model, base, *, apart):
    """The cross entropy of rows (rows, tokens), and `apart` times the orthogonality of triples."""

    def loss(pairs, rows):
        logits = model.apply(attach(base, pairs), rows)[:, :-1]
        entropy = optax.softmax_cross_entropy_with_integer_labels(logits, rows[:, 1:]).mean()
        return entropy + (apart * orthogonality(pairs) if apart else 0.0)

    return loss


def make_step(loss, tx):
    def step(state, rows):
        pairs, opt = state
        updates, opt = tx.update(jax.grad(loss)(pairs, rows), opt, pairs)
        return (optax.apply_updates(pairs, updates), opt), None

    return step


def make_training(loss, ids, make_tx):
    """trained(pairs, rate, seed): the pairs after STEPS steps."""
    rows = ids[: len(ids) // LENGTH * LENGTH].reshape(-1, LENGTH)

    @jax.jit
    def run(pairs, rate, rows):
        tx = make_tx(rate)
        return jax.lax.scan(make_step(loss, tx), (pairs, tx.init(pairs)), rows)[0][0]

    def trained(pairs, rate, seed):
        order = np.random.default_rng(seed).integers(0, len(rows), (STEPS, ROWS))
        return run(pairs, jnp.float32(rate), jnp.asarray(rows[order]))

    return trained


def about_step(loss, tx, pairs):
    state = jax.eval_shape(lambda p: (p, tx.init(p)), pairs)
    rows = jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.int32)
    compiled = jax.jit(make_step(loss, tx), donate_argnums=0).lower(state, rows).compile()
    memory = compiled.memory_analysis()
    return {
        "argument_bytes": memory.argument_size_in_bytes,
        "temp_bytes": memory.temp_size_in_bytes,
        "flops": compiled.cost_analysis()["flops"],
    }


def file_bytes(pairs):
    with tempfile.TemporaryDirectory() as folder:
        jm.save(f"{folder}/pairs.jm", pairs)
        return pathlib.Path(folder, "pairs.jm").stat().st_size


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("model", "text"):
        parser.add_argument(f"--{name}", type=pathlib.Path, required=True)
    args = parser.parse_args()
    model = jm.models.load(args.model)
    base = jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), model.params)
    text = args.text.read_text(encoding="utf-8")
    first, second = (np.asarray(model.tokenizer.encode(part).ids, np.int32)
                     for part in (text[: len(text) // 2], text[len(text) // 2 :]))  # fmt: skip
    held_out = jnp.asarray(second[: WINDOWS * WIDTH].reshape(WINDOWS, WIDTH))
    rows = json.loads(PATH.read_text())["rows"] if PATH.exists() else {}
    results = {
        "command": "python experiments/quality/adaptive_ranks.py --model MODEL --text TEXT",
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "seeds": SEEDS,
        "model": f"{args.model.stem} sha256 {hashlib.sha256(args.model.read_bytes()).hexdigest()}",
        "text_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "rows": rows,
    }
    plain, apart = (make_loss(model, base, apart=x) for x in (0.0, 0.1))
    measure = jax.jit(plain)
    ranked = lambda rate: adaptive_rank(optax.adam(rate), RANK, begin=30, end=200)
    train_lora = make_training(plain, first, optax.adam)
    train_triples = make_training(apart, first, ranked)

    def lora(seed, rate):
        pairs = train_lora(adapters(jax.random.key(seed), base, RANK, LINEARS), rate, seed)
        return about(pairs, plain, optax.adam(rate), seed)

    def adalora(seed, rate):
        whole = train_triples(triples(jax.random.key(seed), base, FIRST, LINEARS), rate, seed)
        pairs = shrink(whole)
        ranks = {path: pair["u"].shape[-1] for path, pair in pairs.items()}
        row = about(pairs, plain, optax.adam(rate), seed) | {"ranks": ranks}
        return row | {"not shrunk": about(whole, apart, ranked(rate), seed)}

    def about(pairs, loss, tx, seed):
        row = {"loss": float(measure(pairs, held_out)), "file_bytes": file_bytes(pairs)}
        return row | ({} if seed else {"step": about_step(loss, tx, pairs)})

    methods = {"AdaLoRA, average rank 8": adalora, "LoRA of rank 8": lora}
    for name, rate, seed in itertools.product(methods, RATES, SEEDS):
        key = f"{name}, rate {rate:g}, seed {seed}"
        if key not in rows:
            rows[key] = methods[name](seed, rate)
            write_whole(PATH, (json.dumps(results, indent=1) + "\n").encode())
            print(key, rows[key], flush=True)

    losses = lambda name, rate: [rows[f"{name}, rate {rate:g}, seed {s}"]["loss"] for s in SEEDS]
    best = {name: min(RATES, key=lambda r: sum(losses(name, r))) for name in methods}
    results["best"] = {name: {"rate": r, "losses": losses(name, r)} for name, r in best.items()}
    write_whole(PATH, (json.dumps(results, indent=1) + "\n").encode())
    print(results["best"])


if __name__ == "__main__":
    main()
