"""A small encoder-decoder learns German captions in English: train_multi30k.json.

    pip install -e ".[demo]"
    python experiments/quality/train_multi30k.py --data DATA --out FOLDER

DATA has the files of Multi30k. A BART of two layers on each side learns the PAIRS shortest of its
training pairs for EPOCHS epochs, with tokens that are learned from all of them. FOLDER gets the
model, which translate_multi30k.py compresses; the JSON has the loss of each epoch.
"""

import argparse
import gzip
import json
import pathlib
import time

import jax
import numpy as np
import optax
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import jaxmem as jm
from jaxmem.architectures import seq2seq

PAIRS, EPOCHS, BATCH, RATE, SEED = 12_800, 5, 64, 2e-3, 0
START, END, LONGEST = 1, 2, 32
CONFIG = seq2seq.Config(
    vocab=2048, width=128, ffn=512, layers=2, heads=4, context=LONGEST, start=START, eos=(END,),
    pre_norms=True, final_norm=True)  # fmt: skip


def learned_tokens(texts: list[str]) -> Tokenizer:
    """Byte pairs of both languages (Sennrich et al., 2016); a space is a sign of its own."""
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    options = {"vocab_size": CONFIG.vocab, "special_tokens": special, "show_progress": False}
    made.train_from_iterator(texts, trainers.BpeTrainer(**options))
    return made


def batches(tokenizer: Tokenizer, german: list[str], english: list[str]) -> list[tuple]:
    """(source, ids, mask, next ids) (BATCH, tokens) of the shortest pairs, of like lengths each.

    The decoder reads START and the words, whose next ids end with END; 0 pads, to 8 tokens.
    """
    encode = lambda texts: [x.ids[: LONGEST - 1] for x in tokenizer.encode_batch(texts)]
    pairs = sorted(zip(encode(german), encode(english)), key=lambda pair: sum(map(len, pair)))
    found = []
    for first in range(0, PAIRS, BATCH):
        sides, rows = zip(*((a, [*b, END]) for a, b in pairs[first : first + BATCH])), []
        for side in sides:
            length = -(-max(map(len, side)) // 8) * 8
            rows.append(np.array([x + [0] * (length - len(x)) for x in side], np.int32))
        read = np.pad(rows[1], ((0, 0), (1, 0)), constant_values=START)[:, :-1]
        found.append((rows[0], read, rows[0] != 0, rows[1]))
    return found


def trained(model: jm.models.Model, rows: list[tuple]) -> tuple[dict, list[float]]:
    """(the weights, the mean loss of each epoch, in nats a token)."""
    steps = EPOCHS * len(rows)
    optimizer = optax.adam(optax.warmup_cosine_decay_schedule(0.0, RATE, steps // 10, steps))
    params = jm.training.fresh(model, seed=SEED).params
    state, draw, losses = optimizer.init(params), np.random.default_rng(SEED), []

    def loss(params, *inputs):
        *inputs, after = inputs
        logits, real = model.apply(params, *inputs), after != 0
        each = optax.softmax_cross_entropy_with_integer_labels(logits, after)
        return (each * real).sum() / real.sum()

    @jax.jit
    def step(params, state, *batch):
        value, slope = jax.value_and_grad(loss)(params, *batch)
        updates, state = optimizer.update(slope, state, params)
        return optax.apply_updates(params, updates), state, value

    for _ in range(EPOCHS):
        found = []
        for i in draw.permutation(len(rows)):
            params, state, value = step(params, state, *rows[i])
            found.append(value)
        losses.append(float(np.mean([float(x) for x in found])))
        print(losses[-1], f"{time.process_time():.0f} s of the CPU", flush=True)
    return params, losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()
    files = [args.data / f"multi30k_train.{language}.gz" for language in ("de", "en")]
    german, english = (gzip.decompress(x.read_bytes()).decode().splitlines() for x in files)
    tokenizer = learned_tokens(german + english)
    rows = batches(tokenizer, german, english)
    name = f"a BART of 2 and 2 layers, trained on {PAIRS:,} pairs of Multi30k"
    model = jm.models.Model(CONFIG, seq2seq.module(CONFIG), tokenizer, name)
    start = time.process_time()
    params, losses = trained(model, rows)
    jm.models.Model(CONFIG, params, tokenizer, name).save(args.out)
    results = {"command": "python experiments/quality/train_multi30k.py --data DATA --out FOLDER"}
    results |= {"jax": jax.__version__, "backend": jax.default_backend(), "seed": SEED}
    results |= {"model": name, "weights": sum(x.size for x in jax.tree.leaves(params))}
    results |= {"losses": losses, "cpu_seconds": round(time.process_time() - start, 1)}
    path = pathlib.Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
