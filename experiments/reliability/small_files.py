"""One small right file of each format that jaxmem reads, and how it is read."""

import json
import pathlib
import struct
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import tokenizers

import jaxmem as jm
from jaxmem.architectures import llama

SIZES = dict(vocab=64, width=16, ffn=24, layers=2, heads=2, kv_heads=1, head_dim=8, context=16)


class SmallFile(NamedTuple):
    path: pathlib.Path  # what is damaged
    read: Callable[[], Any]  # all that is in it, and in the files beside it
    is_text: bool = False
    checked: bool = False  # whether a checksum covers every byte


def small_files(folder: pathlib.Path) -> dict[str, SmallFile]:
    """{name of the format: a file in `folder` of this format}."""
    model = random_model(llama.Config(**SIZES))
    loaded = lambda path: lambda: _content(jm.models.load(path))
    hf, store, gguf = folder / "hf", folder / "weights.jm", folder / "model.gguf"
    jm.interop.to_compressed_tensors(hf, model)
    jm.interop.to_gguf(gguf, model, tokenizer=False)  # llama.cpp has none of words
    jm.save(store, jm.encode(model.params, {"layers/mlp/up/kernel": jm.Int(4)}))
    saved, sharded = folder / "saved", folder / "sharded"
    model.save(saved)
    sharded.mkdir()
    (sharded / "config.json").write_bytes((hf / "config.json").read_bytes())
    weights = (hf / "model.safetensors").read_bytes()
    (sharded / "model-00001-of-00001.safetensors").write_bytes(weights)
    header = json.loads(weights[8 : 8 + int.from_bytes(weights[:8], "little")])
    where = {name: "model-00001-of-00001.safetensors" for name in header if name[0] != "_"}
    index = sharded / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    llama2c = folder / "stories.bin"
    llama2c.write_bytes(_llama2c())
    files = {
        "safetensors": SmallFile(hf / "model.safetensors", loaded(hf)),
        "gguf": SmallFile(gguf, loaded(gguf)),
        "store": SmallFile(store, lambda: jm.load(store), checked=True),
        "llama2.c": SmallFile(llama2c, loaded(llama2c)),
        "config.json": SmallFile(hf / "config.json", loaded(hf), is_text=True),
        "tokenizer.json": SmallFile(hf / "tokenizer.json", loaded(hf), is_text=True),
        "index": SmallFile(index, loaded(sharded), is_text=True),
        "jaxmem.json": SmallFile(saved / "jaxmem.json", loaded(saved), is_text=True),
    }
    return files | _documents(folder)


def _documents(folder: pathlib.Path) -> dict[str, SmallFile]:
    """Plans, recipes and evaluations as JSON."""
    plan = jm.Plan({"w": jm.Int(4, group=16), "layers[0:2]/up": jm.Chain((jm.NM(2, 4), jm.Int(8)))})
    recipe = jm.Recipe("llama-1b", "tpu v5e:1x1", "train", 8, 2048)
    model = random_model(llama.Config(**SIZES))
    evaluation = jm.evaluate(model.apply, model.params, np.arange(32), window=16)
    files = {}
    for value in (plan, recipe, evaluation):
        cls = type(value)
        path = folder / f"{cls.__name__.lower()}.json"
        path.write_text(value.to_json())
        read = lambda cls=cls, path=path: cls.from_json(
            path.read_bytes().decode("utf-8", "replace")
        )
        files[cls.__name__] = SmallFile(path, read, is_text=True)
    return files


def random_model(config: llama.Config) -> jm.models.Model:
    """A Llama of random weights, with a tokenizer of words."""
    ids = jax.ShapeDtypeStruct((1, 8), np.int32)
    shapes = jax.eval_shape(llama.module(config).init, jax.random.key(0), ids)["params"]
    rng = np.random.default_rng(0)
    draw = lambda x: rng.normal(size=x.shape).astype(x.dtype)
    words = {f"word{i}": i for i in range(config.vocab)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="word0"))
    return jm.models.Model(config, jax.tree.map(draw, shapes), tokenizer, "small")


def _llama2c() -> bytes:
    """A llama2.c checkpoint of random weights."""
    s = types.SimpleNamespace(**SIZES)
    kv = s.kv_heads * s.head_dim
    layer = 2 * s.width + 2 * s.width**2 + 2 * kv * s.width + 3 * s.ffn * s.width
    count = s.vocab * s.width + s.layers * layer + s.width + s.context * s.head_dim
    sizes = (s.width, s.ffn, s.layers, s.heads, s.kv_heads, s.vocab, s.context)
    weights = np.random.default_rng(0).normal(size=count).astype("<f4")
    return struct.pack("<7i", *sizes) + weights.tobytes()


def _content(model: jm.models.Model) -> Any:
    """All that a model was loaded with, as a tree."""
    text = model.tokenizer.to_str() if model.tokenizer is not None else None
    return model.config.to_dict(), text, model.params
