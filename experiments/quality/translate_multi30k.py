"""German captions in English by a small encoder-decoder: dense, and with its matrices encoded.

    pip install -e ".[demo,eval]"
    python experiments/quality/train_multi30k.py --data DATA --out FOLDER
    python experiments/quality/translate_multi30k.py --data DATA --model FOLDER

Writes translate_multi30k.json, and a picture beside it. The MEASURED shortest pairs of Multi30k's
validation set are measured: chrF and BLEU of the most probable words with the captions that people
wrote, chrF with those that the dense model writes, the share of captions that are not the dense
model's, and the mean KL divergence from the dense model's next token, in nats, after the words of
people. GPTQ is that of a weighted search with 4 turns, 2:4 is SparseGPT's, refitted; both are
calibrated on the shortest training pairs.
"""

import argparse
import gzip
import hashlib
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import sacrebleu

import jaxmem as jm
from jaxmem.core.pictures import new_figure

MEASURED, CALIBRATING, BATCH, TOKENS = 256, 512, 64, 24
BLOCKS = ".*/kernel"
ROWS = {"dense": None}
CODECS = {"8": jm.Int(8), "4.5": jm.Int(4, group=32), "3.3": jm.Int(3, group=64, symmetric=False)}
for bits, codec in CODECS.items():
    ROWS |= {f"{bits} bits RTN": codec}
    ROWS |= {f"{bits} bits GPTQ": jm.GPTQ(jm.Search(codec), turns=4)}
ROWS |= {"2:4": jm.Refit(jm.SparseGPT(jm.NM(2, 4)))}


def pairs_of(data: pathlib.Path, part: str, model: jm.models.Model, count: int) -> list[tuple]:
    """(German ids, English ids, English) of the shortest pairs, the shortest first."""
    files = [data / f"multi30k_{part}.{language}.gz" for language in ("de", "en")]
    german, english = (gzip.decompress(x.read_bytes()).decode().splitlines() for x in files)
    encode = lambda texts: [x.ids for x in model.tokenizer.encode_batch(texts)]
    pairs = zip(encode(german), encode(english), english)
    return sorted(pairs, key=lambda pair: len(pair[0]) + len(pair[1]))[:count]


def batches(model: jm.models.Model, pairs: list[tuple]) -> list[tuple]:
    """(source, ids, mask, next ids) (BATCH, tokens): next ids end with an end; 0 pads."""
    start, end = model.config.start, model.config.eos[0]
    found = []
    for first in range(0, len(pairs), BATCH):
        few, rows = pairs[first : first + BATCH], []
        for side in ([a for a, *_ in few], [[*b, end] for _, b, _ in few]):
            length = -(-max(map(len, side)) // 8) * 8
            rows.append(np.array([x + [0] * (length - len(x)) for x in side], np.int32))
        read = np.pad(rows[1], ((0, 0), (1, 0)), constant_values=start)[:, :-1]
        found.append((rows[0], read, rows[0] != 0, rows[1]))
    return [tuple(map(jnp.asarray, batch)) for batch in found]


def picture(rows: dict, path: pathlib.Path) -> None:
    """chrF with people's captions and with the dense model's, by row."""
    axes = (figure := new_figure(6, 4)).subplots()
    for name, label in (("chrf", "with people's"), ("to_dense", "with the dense model's")):
        axes.plot([row[name] for row in rows.values()], "o-", label=label)
    axes.set_xticks(range(len(rows)), list(rows), rotation=30, ha="right")
    axes.set(ylabel="chrF", ylim=(0, 1.02), title="Multi30k, German to English")
    axes.legend()
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    args = parser.parse_args()
    model = jm.models.load(args.model)
    asked = pairs_of(args.data, "val", model, MEASURED)
    people, measured = [english for *_, english in asked], batches(model, asked)
    few = [batch[:3] for batch in batches(model, pairs_of(args.data, "train", model, CALIBRATING))]
    uses, stats = jm.uses(model.apply, model.params, *few[0]), None
    said = lambda params, *inputs: jax.nn.log_softmax(model.apply(params, *inputs))

    @jax.jit
    def divergence(params, *inputs) -> jax.Array:
        """The sum of KL divergences of the next token over a batch, in nats."""
        *inputs, after = inputs
        before, found = said(model.params, *inputs), said(params, *inputs)
        return ((jnp.exp(before) * (before - found)).sum(-1) * (after != 0)).sum()

    tokens = sum(int((after != 0).sum()) for *_, after in measured)
    sha256 = hashlib.sha256()
    for leaf in jax.tree.leaves(model.params):
        sha256.update(np.asarray(leaf).tobytes())
    results = {"command": "python experiments/quality/translate_multi30k.py --data DATA --model "
               "FOLDER"}  # fmt: skip
    results |= {"jax": jax.__version__, "backend": jax.default_backend(), "seed": None}
    results |= {"model": "of train_multi30k.py", "weights_sha256": sha256.hexdigest()}
    results |= {"captions": len(asked), "calibration_captions": CALIBRATING, "rows": {}}
    dense_texts = None
    for name, codec in ROWS.items():
        params, row = model.params, {"bytes": jm.nbytes(model.params)}
        if codec is not None:
            if "RTN" not in name and stats is None:
                stats = jm.stats(model.apply, model.params, few)
            plan = jm.choose(model.params, {BLOCKS: codec})
            given = None if "RTN" in name else stats
            encoded = jm.encode(model.params, plan, uses=uses, stats=given)
            params, row = jax.jit(jm.decode)(encoded), {"bytes": jm.nbytes(encoded)}
        small = jm.models.Model(model.config, params, model.tokenizer, name)
        made = jm.models.generate(small, [ids for ids, *_ in asked], max_new_tokens=TOKENS)
        texts = [text.strip() for text in made.texts]
        dense_texts = dense_texts or texts
        row["chrf"] = sacrebleu.corpus_chrf(texts, [people]).score / 100
        row["bleu"] = sacrebleu.corpus_bleu(texts, [people]).score / 100
        row["to_dense"] = sacrebleu.corpus_chrf(texts, [dense_texts]).score / 100
        row["changed"] = float(np.mean([a != b for a, b in zip(texts, dense_texts)]))
        row["kl"] = sum(float(divergence(params, *batch)) for batch in measured) / tokens
        row["first"] = texts[:2]
        results["rows"][name] = row
        print(name, json.dumps(row), flush=True)
    path = pathlib.Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    picture(results["rows"], path.with_suffix(".png"))


if __name__ == "__main__":
    main()
