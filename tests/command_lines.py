"""A tiny random Llama in a folder, and commands that run in this process."""

import contextlib
import io
import json

import numpy as np
import tokenizers
from checkpoints import HF, D, random_tensors, write_sharded
from tokenizers import decoders, pre_tokenizers

import jaxmem as jm
from jaxmem import cli

CONTEXT = 96  # shorter than a window of 1,024, which so is the whole context
TEXT = "It was the best of times, it was the worst of times. " * 8
OTHER = "Call me Ishmael. Some years ago, never mind how long. " * 8


def square_tensors():
    """A random Llama whose matrices all have 64 columns, so that a codec compiles once."""
    cut = lambda name, w: w[:D, :D] if "mlp" in name else w
    return {name: np.ascontiguousarray(cut(name, w)) for name, w in random_tensors().items()}


DENSE = 4 * sum(w.size for w in square_tensors().values())


def write_config(folder):
    changes = {"intermediate_size": D, "max_position_embeddings": CONTEXT}
    (folder / "config.json").write_text(json.dumps(HF | changes))


def model_folder(folder):
    """`folder` with the checkpoint `model` in shards, `small` encoded from it, and three texts."""
    (folder / "model").mkdir()
    write_sharded(folder / "model", square_tensors())
    write_config(folder / "model")
    letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(letters, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "model" / "tokenizer.json"))
    model = jm.models.load(folder / "model")
    plan = jm.choose(model.tensors, {".*/kernel": jm.Int(8)})
    model.save(folder / "small", jm.encode(model.tensors, plan))
    (folder / "a.txt").write_text(TEXT)
    (folder / "b.txt").write_text(OTHER)
    (folder / "short.txt").write_text(TEXT[:50])
    return folder


def run(*line):
    """The exit code of a command, and what it wrote to stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = cli.main([str(word) for word in line])
        except SystemExit as done:
            code = done.code
    return code, out.getvalue(), err.getvalue()


def found(*line):
    """The JSON of a command, alone on stdout."""
    code, out, err = run(*line, "--json")
    assert code == 0, err
    return json.loads(out)
