"""Why llama.cpp writes other tokens than jaxmem from the same GGUF file: gguf_greedy.json.

    pip install -e ".[demo]"
    npm install --prefix FOLDER --ignore-scripts node-llama-cpp@3.22.1
    python experiments/quality/gguf_greedy.py --clients FOLDER --file 110.gguf

FILE is smollm2-135m, rotated, fitted for GGUF into 110 MB without a text; it is written if it is
not there. jaxmem writes the 32 most likely tokens after a prompt. llama.cpp reads the same tokens,
from the file and from the f32 numbers that the file stands for, which llama.cpp itself decodes,
with its cache in F16, its own choice, and in F32. With a file of blocks llama.cpp rounds what the
weights multiply to 8 bits; with F32 weights it does not. Each row says after how many tokens
llama.cpp would write another one, how far apart the first two candidates are there, and how far
apart the logits of the two programs are.
"""

import argparse
import ctypes
import dataclasses
import json
import pathlib
import subprocess
import tempfile

import gguf
import jax
import numpy as np

import jaxmem as jm
from jaxmem import models

BYTES, TOKENS, PROMPT = 110_000_000, 32, "The capital of France is"
LOGITS = pathlib.Path(__file__).with_name("llama_cpp_logits.mjs")


class QuantizeParams(ctypes.Structure):
    """struct llama_model_quantize_params of llama.h; what its pointers point to is not used."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("threads", "file_type", "output", "embedding")),
        *((name, ctypes.c_bool) for name in ("again", "head", "copy", "pure", "split", "dry_run")),
        ("pointers", ctypes.c_void_p * 4),
    ]


def fit(file: pathlib.Path) -> None:
    """Writes the fitted model."""
    options = jm.FitOptions(target="gguf", tune_steps=0)
    model = models.rotate(models.load("smollm2-135m"))
    jm.interop.to_gguf(file, jm.fit(model, BYTES, options=options).model)


def decode(clients: pathlib.Path, file: pathlib.Path, out: pathlib.Path) -> None:
    """Writes `out`, the numbers of the file in f32, as llama.cpp decodes them."""
    folder = clients / "node_modules/@node-llama-cpp/linux-x64/bins/linux-x64"
    lib = ctypes.CDLL(str(next(folder.glob("libllama.v*.so"))))
    lib.llama_model_quantize_default_params.restype = QuantizeParams
    params = lib.llama_model_quantize_default_params()
    if params.threads != 0 or not params.head or params.again:
        raise ValueError(f"{folder} has another llama.h than this script")
    params.again, params.file_type, params.threads = True, 0, 1  # type 0: all are F32
    names = [ctypes.c_char_p(str(path).encode()) for path in (file, out)]
    if lib.llama_model_quantize(*names, ctypes.byref(params)):
        raise ValueError(f"llama.cpp cannot decode {file}")


def equal_tensors(a: pathlib.Path, b: pathlib.Path) -> str:
    """How many tensors of two f32 files are equal in each bit."""
    first, second = ({x.name: x.data for x in gguf.GGUFReader(path).tensors} for path in (a, b))
    equal = sum(np.array_equal(x, second[name]) for name, x in first.items())
    return f"{equal} of {len(first)}"


def their_logits(clients: pathlib.Path, file: pathlib.Path, ids: list[int], cache: str):
    """The logits of llama.cpp, f32 (tokens, vocabulary)."""
    with tempfile.NamedTemporaryFile() as out:
        run = ["node", LOGITS, clients, file, json.dumps(ids), cache, out.name]
        subprocess.run(list(map(str, run)), check=True)
        return np.fromfile(out.name, np.float32).reshape(len(ids), -1)


def compared(ours: np.ndarray, theirs: np.ndarray) -> dict:
    """Two arrays of logits (tokens, vocabulary); each of `ours` chose the next token."""
    best, other = ours.argmax(-1), theirs.argmax(-1)
    differs = np.flatnonzero(best != other)
    error = theirs - ours
    row = {
        "equal_tokens": int(differs[0]) if differs.size else len(ours),
        "largest_difference_of_logits": float(abs(error).max()),
        "deviation_of_logits": float(error.std()),
        "largest_logit": float(abs(ours).max()),
    }
    if differs.size:
        i = differs[0]
        row["at_the_first_other_token"] = {
            "our_margin": float(ours[i, best[i]] - ours[i, other[i]]),
            "their_margin": float(theirs[i, other[i]] - theirs[i, best[i]]),
            "deviation_of_logits": float(error[i].std()),
        }
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=pathlib.Path, required=True)
    parser.add_argument("--file", type=pathlib.Path, required=True)
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path(__file__).with_suffix(".json")
    )
    args = parser.parse_args()
    if not args.file.exists():
        fit(args.file)
    model = models.load(args.file)
    prompt = model.tokenizer.encode(PROMPT, add_special_tokens=False).ids
    endless = dataclasses.replace(model, config=dataclasses.replace(model.config, eos=()))
    written = models.generate(endless, np.array([prompt]), max_new_tokens=TOKENS).ids[0].tolist()
    ids = (prompt + written)[:-1]
    ours = np.asarray(jax.jit(model.apply)(model.params, np.array([ids])))[0, len(prompt) - 1 :]
    if ours.argmax(-1).tolist() != written:
        raise ValueError("generate writes other tokens than the most likely ones")
    results = {
        "command": "python experiments/quality/gguf_greedy.py --clients FOLDER --file 110.gguf",
        "jax": jax.__version__,
        "llama.cpp": "node-llama-cpp 3.22.1",
        "bytes": args.file.stat().st_size,
        "prompt": PROMPT,
        "jaxmem_writes": model.tokenizer.decode(written),
        "tokens": TOKENS,
        "rows": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        decoded, own = pathlib.Path(folder, "theirs.gguf"), pathlib.Path(folder, "ours.gguf")
        decode(args.clients, args.file, decoded)
        jm.interop.to_gguf(own, model)
        results["tensors_that_both_decode_to_equal_numbers"] = equal_tensors(own, decoded)
        for name, file in {"file": args.file, "its numbers in F32": decoded}.items():
            for cache in ("F16", "F32"):
                theirs = their_logits(args.clients, file, ids, cache)[len(prompt) - 1 :]
                results["rows"][f"{name}, {cache} cache"] = compared(ours, theirs)
    args.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
