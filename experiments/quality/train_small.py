"""Small models trained on one text: writes train_small.json and train_small.png.

    python experiments/quality/train_small.py --text tinyshakespeare.txt

Characters are tokens, the last tenth of TEXT is held out. A Llama learns the next one and a BERT
hidden ones, both from new weights by `jm.training.run`, with the steps that recipes stand for; the
BERT is then tuned to tell lines in their order from lines that are turned round. An LSTM learns the
next character through `jm.Fake(jm.Int(4, group=32))`, lifted over time, and is run on the codes.
"""

import argparse
import json
import pathlib
import tempfile
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmem as jm
from jaxmem.architectures import encoder, llama
from jaxmem.core.pictures import new_figure

ROWS, LENGTH, WIDTH, SEED = 16, 64, 96, 0
HERE = pathlib.Path(__file__).with_suffix(".json")


def batches(ids, mask_id=None):
    rows = jm.data.PackedRows([ids], LENGTH, longer="split", seed=SEED)
    stream = jm.data.Batches(rows, ROWS, seed=SEED)
    return stream if mask_id is None else jm.data.MaskedBatches(stream, mask_id, mask_id + 1)


def by_recipe(config, module, stream, steps, rate, held_out):
    """(the curve of a model trained by a recipe, what it made)."""
    model = jm.training.fresh(jm.models.Model(config, module, None, "small"), seed=SEED)
    recipe = jm.Recipe("small", "cpu", "train", ROWS, LENGTH, packed=True, remat=jm.Remat("none"))
    options = jm.training.TrainingOptions(steps, learning_rate=rate, save_every=None)
    with tempfile.TemporaryDirectory() as out:
        made = jm.training.run(model, stream, recipe, out=out, options=options, held_out=held_out)
    return [row["loss"] for row in made.history], made


def plain(loss, params, rows, steps, rate):
    """(the curve of a loss under Adam, the params)."""
    optimizer = optax.adam(optax.warmup_cosine_decay_schedule(0.0, rate, 20, steps))

    @jax.jit
    def step(params, state, *batch):
        value, slope = jax.value_and_grad(loss)(params, *batch)
        updates, state = optimizer.update(slope, state, params)
        return optax.apply_updates(params, updates), state, value

    state, curve = optimizer.init(params), []
    for _ in range(steps):
        params, state, value = step(params, state, *next(rows))
        curve.append(float(value))
    return curve, params


class Recurrent(nn.Module):
    """A language model of one LSTM."""

    vocab: int

    @nn.compact
    def __call__(self, ids):
        x = nn.RNN(nn.OptimizedLSTMCell(WIDTH))(nn.Embed(self.vocab, WIDTH)(ids))
        return nn.Dense(self.vocab)(x)


def recurrent(ids, vocab, steps):
    """(the curve of an LSTM trained for its codes, its figures)."""
    net = Recurrent(vocab)
    apply = lambda params, ids: net.apply({"params": params}, ids)
    params = net.init(jax.random.key(SEED), jnp.zeros((1, LENGTH), jnp.int32))["params"]
    uses = jm.uses(apply, params, jnp.zeros((1, LENGTH), jnp.int32))
    plan = jm.choose(params, {".*(kernel|embedding)": jm.Fake(jm.Int(4, group=32))})
    lifted = jm.lift(apply)

    def loss(params, ids):
        values = optax.softmax_cross_entropy_with_integer_labels
        return values(lifted(params, ids)[:, :-1], ids[:, 1:]).mean()

    rows = ((jnp.asarray(batch["ids"]),) for batch in batches(ids[: len(ids) * 9 // 10]))
    curve, trained = plain(loss, jm.encode(params, plan, uses=uses), rows, steps, 5e-3)
    codes = jm.export(trained)
    held = jnp.asarray(ids[len(ids) * 9 // 10 :][: 32 * LENGTH].reshape(32, LENGTH))
    both = [float(jax.jit(loss)(tree, held)) for tree in (trained, codes)]
    return curve, {"held_out_loss": both[1], "as_trained": both[0], "bytes": jm.nbytes(codes)}


def ordered_lines(made, text, letters, steps):
    """(the curve of the encoder tuned to see the order of two lines, its accuracy on others)."""
    config, trunk = made.model.config, made.model.params
    net = encoder.module(encoder.Config(**config.to_dict() | {"head": "sequence", "labels": 2}))
    lines = [line for line in text.splitlines() if 12 < len(line) <= LENGTH // 2 - 2]
    fresh = net.init(jax.random.key(SEED), jnp.zeros((1, LENGTH), jnp.int32))["params"]
    params = fresh | {k: v for k, v in trunk.items() if k != "head"}
    params = jax.tree.map(lambda x: x.astype(jnp.float32), params)

    def examples(first, last, seed):
        random = np.random.default_rng(seed)
        while True:
            ids, labels = np.zeros((ROWS, LENGTH), np.int32), random.integers(0, 2, ROWS)
            mask = np.zeros((ROWS, LENGTH), bool)
            for row, (i, label) in enumerate(zip(random.integers(first, last - 1, ROWS), labels)):
                line = lines[i] if label else lines[i][::-1]
                codes = [letters[c] for c in line]
                ids[row, : len(codes)], mask[row, : len(codes)] = codes, True
            yield jnp.asarray(ids), jnp.asarray(mask), jnp.asarray(labels)

    def loss(params, ids, mask, labels):
        logits = net.apply({"params": params}, ids, mask)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    cut = len(lines) * 9 // 10
    curve, tuned = plain(loss, params, examples(0, cut, 0), steps, 1e-3)
    found = [next(examples(cut, len(lines), seed)) for seed in range(1, 9)]
    right = [net.apply({"params": tuned}, i, m).argmax(-1) == y for i, m, y in found]
    return curve, float(jnp.concatenate(right).mean())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", required=True)
    parser.add_argument("--steps", type=int, default=1200)
    args = parser.parse_args()
    text = pathlib.Path(args.text).read_text()
    letters = {c: i for i, c in enumerate(sorted(set(text)))}
    ids, vocab = np.array([letters[c] for c in text], np.int32), len(letters)
    train, held_out = ids[: len(ids) * 9 // 10], ids[len(ids) * 9 // 10 :][: 64 * LENGTH]
    sizes = dict(width=WIDTH, ffn=2 * WIDTH, layers=3, heads=4)
    start = time.perf_counter()
    config = llama.Config(vocab=vocab, **sizes, kv_heads=2, head_dim=24)
    curves, figures = {}, {}
    curves["Llama"], made = by_recipe(
        config, llama.module(config), batches(train), args.steps, 3e-3, held_out
    )
    figures["Llama"] = {"held_out_loss": made.history[-1]["held_out_loss"]}
    config = encoder.Config(vocab=vocab + 1, **sizes, context=LENGTH, head="masked_lm")
    stream = batches(train, mask_id=vocab)
    curves["BERT, hidden characters"], made = by_recipe(
        config, encoder.module(config), stream, args.steps, 1e-3, held_out
    )
    figures["BERT, hidden characters"] = {"held_out_loss": made.history[-1]["held_out_loss"]}
    curves["BERT, tuned"], accuracy = ordered_lines(made, text, letters, args.steps // 2)
    figures["BERT, tuned"] = {"accuracy": accuracy}
    curves["LSTM, 4 bits"], figures["LSTM, 4 bits"] = recurrent(ids, vocab, args.steps)
    rows = [
        {"model": name, "first_loss": curve[0], "last_loss": float(np.mean(curve[-20:]))}
        | figures.get(name, {})
        for name, curve in curves.items()
    ]
    about = {"jax": jax.__version__, "backend": jax.default_backend(), "seed": SEED}
    about |= {"text": pathlib.Path(args.text).name, "steps": args.steps, "rows": rows}
    about["seconds"] = round(time.perf_counter() - start)
    HERE.write_text(json.dumps(about, indent=1) + "\n")
    figure = new_figure(7, 4)
    axes = figure.subplots()
    for name, curve in curves.items():
        axes.plot(np.convolve(curve, np.ones(10) / 10, "valid"), label=name)
    axes.set(xlabel="step", ylabel="loss, nats (mean of ten steps)", ylim=(0, None))
    axes.legend()
    figure.savefig(HERE.with_suffix(".png"), dpi=120)


if __name__ == "__main__":
    main()
