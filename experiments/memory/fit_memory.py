"""A fit without data never holds the dense model: writes fit_memory.json.

    pip install -e ".[demo]"
    python experiments/memory/fit_memory.py

Measured is the peak host memory of `jaxmem fit` in a process of its own (VmHWM, Linux), on two
checkpoints: SmolLM2 written in shards, and random weights with the shapes of Llama 3.2 1B in
bfloat16 (2.5 GB of temporary files). The bound is the encoded bytes, twice the largest weight of
one layer in float32, and 1 GB, which is less than the embedding of the larger model in float32.
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
from jaxmem.architectures import llama
from jaxmem.architectures.configs import published_configs
from jaxmem.core.paths import is_whole

FIT_AND_PRINT_PEAK = """
import sys
from jaxmem.cli import main
code = main(sys.argv[1:])
[peak] = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(f"\\n{peak}")
sys.exit(code)
"""
BITS = (8, 5)


def smollm2(folder: pathlib.Path) -> int:
    """Writes SmolLM2 in float32 shards; returns `largest_layer_weight`."""
    model = jm.models.load("smollm2-135m")
    config = model.config
    hf_config = {
        "model_type": "llama",
        "vocab_size": config.vocab,
        "hidden_size": config.width,
        "intermediate_size": config.ffn,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.eps,
        "rope_theta": config.theta,
        "tie_word_embeddings": config.tied,
    }
    leaves = jax.tree.leaves(model.tensors, is_leaf=is_whole)
    tensors = dict(zip(jm.paths(model.tensors), leaves))
    write_shards(
        folder, hf_config, lambda path, i, shape: np.asarray(tensors[path].read(i), np.float32)
    )
    return largest_layer_weight(model)


def random_1b(folder: pathlib.Path) -> int:
    """Writes bfloat16 shards with the shapes of Llama 3.2 1B; returns `largest_layer_weight`."""
    rng = np.random.default_rng(0)

    def draw(path, i, shape):
        w = rng.standard_normal(shape, dtype=np.float32)
        return (w * 0.02).astype(ml_dtypes.bfloat16)

    write_shards(folder, published_configs.CONFIGS["llama-1b"], draw)
    return largest_layer_weight(jm.models.load(folder))


def write_shards(folder: pathlib.Path, hf_config: dict, read_weight) -> None:
    """Writes one shard a layer, and one for the rest; `read_weight` returns our models' layout."""
    (folder / "config.json").write_text(json.dumps(hf_config))
    weight_map, shards = {}, {}
    for path, recipe in llama.weights(llama.Config.from_hf(hf_config)).items():
        for index, name in enumerate(recipe.names):
            shard = f"model-{index if recipe.stacked else 'rest'}.safetensors"
            weight_map[name] = shard
            transposed = path.endswith("kernel")
            shape = recipe.shape[1:] if recipe.stacked else recipe.shape
            layer = index if recipe.stacked else None
            shards.setdefault(shard, []).append((name, path, layer, shape, transposed))
    for shard, entries in shards.items():
        tensors = {}
        for name, path, layer, shape, transposed in entries:
            weight = read_weight(path, layer, shape)
            tensors[name] = np.ascontiguousarray(weight.T if transposed else weight)
        safetensors.numpy.save_file(tensors, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def largest_layer_weight(model: jm.models.Model) -> int:
    """Bytes in float32 of the largest weight of one layer; embedding and head do not count."""
    leaves = jax.tree.leaves(model.tensors, is_leaf=is_whole)
    return max(4 * math.prod(x.shape[1:]) for x in leaves if x.stacked)


def fit_in_subprocess(folder: pathlib.Path, bits: int, largest_weight: int) -> dict:
    """Fits the checkpoint in a process of its own, whose peak is compared with the bound."""
    weights = sum(
        math.prod(x.shape)
        for x in jax.tree.leaves(jm.models.load(folder).tensors, is_leaf=is_whole)
    )
    out = folder.parent / "out"
    argv = ["fit", folder, "--bytes", weights * bits // 8, "--out", out, "--force", "--json"]
    command = [sys.executable, "-c", FIT_AND_PRINT_PEAK, *map(str, argv)]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    fitted, _, peak = output.strip().rpartition("\n")
    fitted, peak = json.loads(fitted), 1024 * int(peak)
    bound = fitted["bytes"] + 2 * largest_weight + 10**9
    return {
        "bits": bits,
        "weights": weights,
        "dense_f32_bytes": 4 * weights,
        "encoded_bytes": fitted["bytes"],
        "largest_weight_of_a_layer_bytes": largest_weight,
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
    for name, write in {"smollm2-135m, f32": smollm2, "random 1B, bf16": random_1b}.items():
        with tempfile.TemporaryDirectory() as folder_name:
            folder = pathlib.Path(folder_name, "model")
            folder.mkdir()
            largest_weight = write(folder)
            result[name] = [fit_in_subprocess(folder, bits, largest_weight) for bits in BITS]
            print(json.dumps({name: result[name]}, indent=1), flush=True)
    path = pathlib.Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
