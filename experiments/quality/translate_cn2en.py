"""Chinese clauses in English by cn2en, a GRU encoder-decoder: dense, and fitted into few bits.

    pip install "pip<24.1"            # newer ones refuse the metadata of this package
    pip download --no-deps cn2en==0.0.118
    python experiments/quality/translate_cn2en.py cn2en*.whl SENTENCES.json ...

The figures go into translate_cn2en.json. Each line of SENTENCES is an object with a "sentence" (of
CLUE's tnews and FewCLUE's eprstmt), which is cut at punctuation; clauses of 3 to LONGEST characters
that the model knows are shuffled with SEED. CLAUSES are measured, others are read where a row is
calibrated. `kl` is the mean over tokens of the KL divergence of the dense model's next token from
the fitted one's, in nats, after what the dense model writes; `same` the share of clauses of which
both write the same English.

The wheel (MIT) has its weights and words in pickles, which could run any code. jaxmem reads none;
`values` below takes the opcodes of these three files, whose sha256 is checked, and builds numbers,
texts, tuples, dicts and arrays of them. It imports and calls nothing that a file names, and refuses
every opcode and every name that it does not list.
"""

import argparse
import hashlib
import io
import json
import math
import pathlib
import pickletools
import re
import zipfile

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import jaxmem as jm

CLAUSES, CALIBRATION, SEED, LONGEST, MOST, BATCH, WIDTH = 512, 512, 0, 12, 12, 128, 256
BITS, START, END = (8, 4.5, 4, 3), 0, 1
KNOWN = ("我爱你", "你会说英语吗")  # "i love you", "do you speak english ?"
SHA256 = {
    "cn2en/model.pth": "ec6415ab27b1fef85b1e8d7334b5530152061992f9732b61a67dcb649369a6cb",
    "cn2en/input_lang.pkl": "ce0df7c56c3d1f06fc5387227b84988f1c69759fd69a96f9ad38fa78efe97f65",
    "cn2en/output_lang.pkl": "9ec82de5ecb91811b7e400c69136dbe3af24bf25e4cc9db0c29b744ed6830152",
}
CONSTANTS = {"BININT", "BININT1", "BININT2", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"}
EMPTY = {"EMPTY_DICT": dict, "EMPTY_TUPLE": tuple, "NEWFALSE": bool}
TENSOR, STORAGE = "torch._utils _rebuild_tensor_v2", "torch FloatStorage"
OBJECTS = ("collections OrderedDict", "__main__ Lang")
MARK = object()


def values(data: bytes, storages: dict[str, bytes]):
    """What a pickle says: an object is the dict of its fields, a tensor an array of f32."""
    stack, memo = [], {}

    def last(count: int) -> list:
        items = stack[len(stack) - count :]
        del stack[len(stack) - count :]
        return items

    def after_mark() -> list:
        return last(next(i for i, x in enumerate(stack[::-1], 1) if x is MARK))[1:]

    def name(text: str) -> None:
        if text not in (TENSOR, STORAGE, *OBJECTS):
            raise ValueError(f"the pickle names {text!r}, which is none of cn2en's")
        stack.append(text)

    def make(text: str, arguments: tuple) -> None:
        if text not in (TENSOR, *OBJECTS) or (text != TENSOR and arguments):
            raise ValueError(f"the pickle calls {text!r} with {arguments}")
        stack.append(array(storages, *arguments[:4]) if text == TENSOR else {})

    put = lambda at: memo.update({len(memo) if at is None else at: stack[-1]})
    get = lambda at: stack.append(memo[at])
    add = lambda items: stack[-1].update(zip(items[::2], items[1::2], strict=True))
    actions = {
        "MARK": lambda _: stack.append(MARK),
        **{opcode: lambda _, kind=kind: stack.append(kind()) for opcode, kind in EMPTY.items()},
        **{"BINPUT": put, "MEMOIZE": put, "BINGET": get, "LONG_BINGET": get},
        "GLOBAL": name,
        "STACK_GLOBAL": lambda _: name(" ".join(last(2))),
        "TUPLE": lambda _: stack.append(tuple(after_mark())),
        "TUPLE1": lambda _: stack.append(tuple(last(1))),
        "TUPLE2": lambda _: stack.append(tuple(last(2))),
        "SETITEM": lambda _: add(last(2)),
        "SETITEMS": lambda _: add(after_mark()),
        "BINPERSID": lambda _: None,  # a storage is known by its tuple
        "REDUCE": lambda _: make(*last(2)),
        "NEWOBJ": lambda _: make(*last(2)),
        "BUILD": lambda _: [stack[-1].update(state) for state in [stack.pop()]],
        **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda _: None),
        **dict.fromkeys(CONSTANTS, stack.append),
    }
    for opcode, value, _ in pickletools.genops(data):
        if opcode.name not in actions:
            raise ValueError(f"the pickle has the opcode {opcode.name}, which cn2en's have not")
        actions[opcode.name](value)
    return stack.pop()


def array(storages: dict, storage: tuple, offset: int, shape: tuple, strides: tuple) -> np.ndarray:
    """A tensor whose numbers lie in order in its storage ("storage", kind, key, device, count)."""
    if storage[1] != STORAGE:
        raise ValueError(f"a tensor is of {storage[1]!r}, expected {STORAGE}")
    x = np.frombuffer(storages[storage[2]], "<f4")[offset:][: math.prod(shape)].reshape(shape)
    if x.strides != tuple(4 * s for s in strides):
        raise ValueError(f"a tensor has the strides {strides}, expected those of {shape} in order")
    return x


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


def gru(tensors: dict) -> dict:
    """The params of a GRUCell; PyTorch joins the kernels of its gates r, z and n by rows."""
    gates = lambda name: np.split(tensors[f"gru.{name}_l0"], 3)
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


def read(wheel: zipfile.ZipFile) -> tuple[dict, dict[str, int], dict[int, str]]:
    """The params, the characters' ids, and the words by id."""
    files = {name: wheel.read(name) for name in SHA256}
    for name, data in files.items():
        if hashlib.sha256(data).hexdigest() != SHA256[name]:
            raise ValueError(f"{name} is not the file of cn2en 0.0.118")
    weights, characters, words = files.values()
    with zipfile.ZipFile(io.BytesIO(weights)) as archive:
        parts = {x.rpartition("/")[2]: archive.read(x) for x in archive.namelist()}
    tensors = values(parts["data.pkl"], parts)
    encoder, decoder = tensors["encoder"], tensors["decoder"]
    params = {"characters": {"embedding": encoder["embedding.weight"]}, "encoder": gru(encoder)}
    params |= {"words": {"embedding": decoder["embedding.weight"]}, "decoder": gru(decoder)}
    params["out"] = {"kernel": decoder["out.weight"].T, "bias": decoder["out.bias"]}
    ids, english = values(characters, {})["word2index"], values(words, {})["index2word"]
    return jax.tree.map(jnp.asarray, params), ids, english


def drawn_clauses(paths: list[pathlib.Path], ids: dict[str, int]) -> list[list[str]]:
    """The clauses, in parts of BATCH: first those that are measured."""
    texts = [json.loads(x)["sentence"] for path in paths for x in path.open(encoding="utf-8")]
    clauses = {x for text in texts for x in re.split(r"[^\u4e00-\u9fff]+", text)}
    known = sorted(x for x in clauses if 3 <= len(x) <= LONGEST and ids.keys() >= set(x))
    order = np.random.default_rng(SEED).permutation(known).tolist()
    return [order[i : i + BATCH] for i in range(0, CLAUSES + CALIBRATION, BATCH)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=zipfile.ZipFile)
    parser.add_argument("sentences", type=pathlib.Path, nargs="+")
    args = parser.parse_args()
    params, ids, english = read(args.wheel)
    module = Translator(*(len(params[x]["embedding"]) for x in ("characters", "words")))
    apply = lambda params, *inputs: module.apply({"params": params}, *inputs)
    dense = jax.jit(apply)
    parts = drawn_clauses(args.sentences, ids)
    written = [greedy(dense, params, part, ids) for part in parts]
    batches = [batch(part, ids, text) for part, text in zip(parts, written)]
    measured = CLAUSES // BATCH

    path = pathlib.Path(__file__).with_suffix(".json")
    figures = json.loads(path.read_text("utf-8")) if path.exists() else {"rows": {}}
    count, weights = sum(x.size for x in jax.tree.leaves(params)), "cn2en/model.pth"
    figures |= {"jax": jax.__version__, "backend": jax.default_backend(), "seed": SEED}
    figures |= {"model": f"cn2en==0.0.118, {weights}, sha256 {SHA256[weights]}, MIT"}
    figures |= {"weights": count, "clauses": CLAUSES, "calibration_clauses": CALIBRATION}
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
