"""A fit without data never holds the dense model: writes fit_memory.json.

    pip install -e ".[demo]"
    python experiments/memory/fit_memory.py

Peak host memory of `jaxmem fit` in a process of its own (VmHWM, Linux), of SmolLM2 written out in
shards and of a random checkpoint with the shapes of Llama 3.2 1B in bfloat16 (2.5 GB of temporary
files). The bound is the encoded bytes, twice the largest weight of one layer in float32, and 1 GB:
too little to hold even the embedding of the larger model as it was.
"""

import importlib.metadata
import json
import math
import pathlib
import subprocess
import sys
import tempfile

import jax
import ml_dtypes
import numpy as np
import safetensors.numpy

import jaxmem as jm
from jaxmem.architectures import llama, published_configs
from jaxmem.core.paths import is_whole

CHILD = """
import sys
from jaxmem.cli import main
code = main(sys.argv[1:])
[peak] = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(f"\\n{peak}")
sys.exit(code)
"""
BITS = (8, 5)


def smollm2(folder: pathlib.Path) -> int:
    """Writes SmolLM2 in float32 shards."""
    model = jm.models.load("smollm2-135m")
    c = model.config
    hf = {
        "model_type": "llama",
        "vocab_size": c.vocab,
        "hidden_size": c.width,
        "intermediate_size": c.ffn,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "max_position_embeddings": c.context,
        "rms_norm_eps": c.eps,
        "rope_theta": c.theta,
        "tie_word_embeddings": c.tied,
    }
    leaves = jax.tree.leaves(model.tensors, is_leaf=is_whole)
    tensors = dict(zip(jm.paths(model.tensors), leaves))
    write(folder, hf, lambda path, i, shape: np.asarray(tensors[path].read(i), np.float32))
    return largest(model)


def random_1b(folder: pathlib.Path) -> int:
    """Writes random weights with the shapes of Llama 3.2 1B in bfloat16 shards."""
    rng = np.random.default_rng(0)

    def draw(path, i, shape):
        w = rng.standard_normal(shape, dtype=np.float32)
        return (w * 0.02).astype(ml_dtypes.bfloat16)

    write(folder, published_configs.CONFIGS["llama-1b"], draw)
    return largest(jm.models.load(folder))


def write(folder: pathlib.Path, hf: dict, read) -> None:
    """A shard a layer, and one for the rest; `read` gives a weight as our models hold it."""
    (folder / "config.json").write_text(json.dumps(hf))
    where, shards = {}, {}
    for path, recipe in llama.weights(llama.Config.from_hf(hf)).items():
        for i, name in enumerate(recipe.names):
            shard = f"model-{i if recipe.stacked else 'rest'}.safetensors"
            where[name] = shard
            turned = path.endswith("kernel")
            shape = recipe.shape[1:] if recipe.stacked else recipe.shape
            at = i if recipe.stacked else None
            shards.setdefault(shard, []).append((name, path, at, shape, turned))
    for shard, entries in shards.items():
        tensors = {}
        for name, path, at, shape, turned in entries:
            w = read(path, at, shape)
            tensors[name] = np.ascontiguousarray(w.T if turned else w)
        safetensors.numpy.save_file(tensors, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


def largest(model: jm.models.Model) -> int:
    """Bytes in float32 of the largest weight of one layer; embedding and head do not count."""
    leaves = jax.tree.leaves(model.tensors, is_leaf=is_whole)
    return max(4 * math.prod(x.shape[1:]) for x in leaves if x.stacked)


def fit(folder: pathlib.Path, bits: int, layer: int) -> dict:
    """Fits the checkpoint in a process of its own, and compares its peak with the bound."""
    weights = sum(
        math.prod(x.shape)
        for x in jax.tree.leaves(jm.models.load(folder).tensors, is_leaf=is_whole)
    )
    out = folder.parent / "out"
    line = ["fit", folder, "--bytes", weights * bits // 8, "--out", out, "--force", "--json"]
    command = [sys.executable, "-c", CHILD, *map(str, line)]
    text = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    found, _, peak = text.strip().rpartition("\n")
    found, peak = json.loads(found), 1024 * int(peak)
    bound = found["bytes"] + 2 * layer + 10**9
    return {
        "bits": bits,
        "weights": weights,
        "dense_f32_bytes": 4 * weights,
        "encoded_bytes": found["bytes"],
        "largest_weight_of_a_layer_bytes": layer,
        "bound_bytes": bound,
        "peak_bytes": peak,
        "within_bound": peak <= bound,
    }


def main() -> None:
    result = {
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "numpy")},
        "python": sys.version.split()[0],
        "backend": jax.default_backend(),
    }
    for name, make in {"smollm2-135m, f32": smollm2, "random 1B, bf16": random_1b}.items():
        with tempfile.TemporaryDirectory() as place:
            folder = pathlib.Path(place, "model")
            folder.mkdir()
            layer = make(folder)
            result[name] = [fit(folder, bits, layer) for bits in BITS]
            print(json.dumps({name: result[name]}, indent=1), flush=True)
    path = pathlib.Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
