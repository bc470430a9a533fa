"""Chinese clauses in English by cn2en, a GRU encoder-decoder: dense, and fitted into few bits.

    python experiments/quality/cn2en_arrays.py cn2en*.whl cn2en.npz     # says how to get the wheel
    python experiments/quality/cn2en_torch.py cn2en*.whl cn2en.npz cn2en_torch.npz
    python experiments/quality/translate_cn2en.py cn2en.npz cn2en_torch.npz SENTENCES.json ...

The figures go into translate_cn2en.json: first how far the logits are from PyTorch's, relative to
the largest of them. Each line of SENTENCES is an object with a "sentence" (of CLUE's tnews and
FewCLUE's eprstmt), which is cut at punctuation; clauses of 3 to LONGEST characters that the model
knows are shuffled with SEED. CLAUSES are measured, others are read where a row is calibrated. `kl`
is the mean over tokens of the KL divergence of the dense model's next token from the fitted one's,
in nats, after what the dense model writes; `same` the share of clauses of which both write the same
English.
"""

import argparse
import json
import pathlib
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import jaxmem as jm

CLAUSES, CALIBRATION, SEED, LONGEST, MOST, BATCH, WIDTH = 512, 512, 0, 12, 12, 128, 256
BITS, START, END = (8, 4.5, 4, 3), 0, 1
KNOWN = ("我爱你", "你会说英语吗")  # "i love you", "do you speak english ?"


class Translator(nn.Module):
    """Maps characters (B, S), the lengths (B,) and English words (B, T) to logits (B, T, words)."""

    characters: int
    words: int

    @nn.compact
    def __call__(self, source, lengths, ids):
        x = nn.Embed(self.characters, WIDTH, name="characters")(source)
        encoder = nn.RNN(nn.GRUCell(WIDTH, name="encoder"), return_carry=True)
        state, _ = encoder(x, seq_lengths=lengths)
        x = nn.relu(nn.Embed(self.words, WIDTH, name="words")(ids))
        x = nn.RNN(nn.GRUCell(WIDTH, name="decoder"))(x, initial_carry=state)
        return nn.Dense(self.words, name="out")(x)


def gru(file, part: str) -> dict:
    """The params of a GRUCell; PyTorch joins the kernels of its gates r, z and n by rows."""
    gates = lambda name: np.split(file[f"{part}.gru.{name}_l0"], 3)
    inputs, states = gates("weight_ih"), gates("weight_hh")
    input_bias, state_bias = gates("bias_ih"), gates("bias_hh")
    biases = [*(a + b for a, b in zip(input_bias[:2], state_bias[:2])), input_bias[2]]
    cell = {f"i{x}": {"kernel": w.T, "bias": b} for x, w, b in zip("rzn", inputs, biases)}
    cell |= {f"h{x}": {"kernel": w.T} for x, w in zip("rzn", states)}
    cell["hn"]["bias"] = state_bias[2]
    return cell


def batch(clauses: list[str], ids: dict[str, int], written: np.ndarray) -> tuple:
    """The inputs of the module: characters (B, LONGEST + 1) with an end, their lengths, and the
    words (B, MOST) before those that are `written`."""
    source = np.full((len(clauses), LONGEST + 1), END, np.int32)
    for row, clause in zip(source, clauses):
        row[: len(clause)] = [ids[x] for x in clause]
    before = np.pad(written, ((0, 0), (1, 0)), constant_values=START)[:, :MOST]
    return source, np.array([len(x) + 1 for x in clauses], np.int32), before.astype(np.int32)


def greedy(run, params, clauses: list[str], ids: dict[str, int]) -> np.ndarray:
    """The most probable words (B, MOST), one after the other."""
    written = np.full((len(clauses), MOST), END)
    for i in range(MOST):
        written[:, i] = np.asarray(run(params, *batch(clauses, ids, written)))[:, i].argmax(-1)
    return written


def until_end(written: np.ndarray) -> np.ndarray:
    """Where (B, T) a text is not over: up to its first END."""
    return np.cumsum(written == END, axis=1) - (written == END) == 0


def divergence(dense: jax.Array, other: jax.Array, real: np.ndarray) -> tuple[float, int]:
    """The sum of KL divergences of the next token where `real`, and their number."""
    dense, other = jax.nn.log_softmax(dense), jax.nn.log_softmax(other)
    return float(((jnp.exp(dense) * (dense - other)).sum(-1) * real).sum()), int(real.sum())


def read(file) -> dict:
    """The params of the module."""
    params = {part: gru(file, part) for part in ("encoder", "decoder")}
    params["characters"] = {"embedding": file["encoder.embedding.weight"]}
    params["words"] = {"embedding": file["decoder.embedding.weight"]}
    params["out"] = {"kernel": file["decoder.out.weight"].T, "bias": file["decoder.out.bias"]}
    return jax.tree.map(jnp.asarray, params)


def against_torch(run, params, file) -> dict:
    """How far the logits (B, MOST, words) are from PyTorch's, after the words that it wrote."""
    before = np.pad(file["written"], ((0, 0), (1, 0)), constant_values=START)[:, :MOST]
    got = np.asarray(run(params, file["source"], file["lengths"], before))
    return {
        "torch": str(file["torch"]),
        "sentences": len(got),
        "largest_relative_difference": float(abs(got - file["logits"]).max() / abs(got).max()),
        "same_words": int((got.argmax(-1) == file["written"]).sum()),
        "words": file["written"].size,
    }


def drawn_clauses(paths: list[pathlib.Path], ids: dict[str, int]) -> list[list[str]]:
    """The clauses, in parts of BATCH: first those that are measured."""
    texts = [json.loads(x)["sentence"] for path in paths for x in path.open(encoding="utf-8")]
    clauses = {x for text in texts for x in re.split(r"[^\u4e00-\u9fff]+", text)}
    known = sorted(x for x in clauses if 3 <= len(x) <= LONGEST and ids.keys() >= set(x))
    order = np.random.default_rng(SEED).permutation(known).tolist()
    return [order[i : i + BATCH] for i in range(0, CLAUSES + CALIBRATION, BATCH)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("arrays", type=np.load)
    parser.add_argument("reference", type=np.load)
    parser.add_argument("sentences", type=pathlib.Path, nargs="+")
    args = parser.parse_args()
    params, english = read(args.arrays), args.arrays["words"].tolist()
    ids = {x: i for i, x in enumerate(args.arrays["characters"].tolist())}
    module = Translator(*(len(params[x]["embedding"]) for x in ("characters", "words")))
    apply = lambda params, *inputs: module.apply({"params": params}, *inputs)
    dense = jax.jit(apply)
    compared = against_torch(dense, params, args.reference)
    parts = drawn_clauses(args.sentences, ids)
    written = [greedy(dense, params, part, ids) for part in parts]
    batches = [batch(part, ids, text) for part, text in zip(parts, written)]
    measured = CLAUSES // BATCH

    path = pathlib.Path(__file__).with_suffix(".json")
    figures = json.loads(path.read_text("utf-8")) if path.exists() else {"rows": {}}
    count, sha256 = sum(x.size for x in jax.tree.leaves(params)), str(args.arrays["sha256"])
    figures |= {"jax": jax.__version__, "backend": jax.default_backend(), "seed": SEED}
    figures |= {"model": f"cn2en==0.0.118, cn2en/model.pth, sha256 {sha256}, MIT"}
    figures |= {"weights": count, "clauses": CLAUSES, "calibration_clauses": CALIBRATION}
    figures["against_torch"] = compared
    print(compared, flush=True)
    path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    rows = {"dense": (None, None)}
    rows |= {f"{bits} bits": (bits, None) for bits in BITS}
    rows |= {f"{bits} bits, calibrated": (bits, batches[measured:]) for bits in BITS}
    for name, (bits, calibrate) in rows.items():
        if name in figures["rows"]:
            continue
        run, small = dense, params
        if bits:
            options = jm.FitOptions(logits=calibrate is not None)
            model = (apply, params, *batches[-1])
            fitted = jm.fit(model, int(count * bits / 8), calibrate=calibrate, options=options)
            run, small = jax.jit(fitted.model[0]), fitted.model[1]
        total = tokens = same = 0
        for part, text, inputs in zip(parts[:measured], written, batches):
            real = until_end(text)
            kl, n = divergence(dense(params, *inputs), run(small, *inputs), real)
            total, tokens = total + kl, tokens + n
            same += int(((greedy(run, small, part, ids) == text) | ~real).all(1).sum())
        nbytes = jm.nbytes(small)
        row = {"bytes": nbytes, "bits": round(8 * nbytes / count, 3)}
        row |= {"kl": round(total / tokens, 5), "same": round(same / CLAUSES, 4)}
        known = greedy(run, small, list(KNOWN), ids)
        row["known"] = [" ".join(english[i] for i in x[: [*x, END].index(END)]) for x in known]
        figures["rows"][name] = row
        print(name, row, flush=True)
        path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
