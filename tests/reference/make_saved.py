"""Writes files as jaxmem 0.1.0 saved them, beside this script; test_saved_by_0_1_0.py loads them.

Run it with jaxmem 0.1.0 (commit bcdf4a1), not with a later version, whose files are no proof:

    git worktree add /tmp/jaxmem010 bcdf4a1
    PYTHONPATH=/tmp/jaxmem010 python tests/reference/make_saved.py

saved_0_1_0.jm, saved_0_1_0_compressed.jm   trees of `jm.save`
saved_0_1_0.npz                             for each entry of a tree: the arrays inside (`entry/0`,
                                            ...) and the decoded arrays (`entry/decoded/0`, ...);
                                            the arrays inside the model, and its logits
model_0_1_0/                                a directory of `Model.save`
texts_0_1_0.json                            texts of `to_json`: a plan, a recipe, an evaluation
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from flax.core import FrozenDict
from jaxmem.estimating import Estimate  # the modules of 0.1.0
from jaxmem.models.llama import Config, module
from jaxmem.train.eighths import in_int8
from tokenizers import Tokenizer, models, pre_tokenizers

import jaxmem as jm

HERE = pathlib.Path(__file__).parent
DOUBLE = jm.DoubleQuant(jm.Codebook("nf4", group=8), jm.Int(8, group=16, symmetric=False))
CODECS = {
    "int2": jm.Int(2),
    "int3_group": jm.Int(3, group=16),
    "int4_group_zero": jm.Int(4, group=10, symmetric=False),
    "int8": jm.Int(8),
    "affine": jm.Affine(4, group=16),
    "nf4": jm.Codebook("nf4"),
    "fp4": jm.Codebook("fp4", group=16),
    "e4m3": jm.Float("e4m3"),
    "mxfp4": jm.Float("mxfp4"),
    "nvfp4": jm.Float("nvfp4"),
    "kmeans": jm.KMeans(2, group=16),
    "planes": jm.Planes(group=16),
    "low_rank": jm.LowRank(2),
    "sum": jm.Sum((jm.Int(4), jm.LowRank(1))),
    "chain": jm.Chain((jm.LowRank(2), jm.Int(8))),
    "chain_sparse": jm.Chain((jm.NM(2, 4), jm.Int(4, group=6))),
    "bitmask": jm.Bitmask(0.5),
    "nm": jm.NM(2, 4),
    "csr": jm.Csr(0.1),
    "coo": jm.Coo(0.05),
    "blocks": jm.Blocks(0.5, block=(8, 8)),
    "inputs": jm.Inputs(0.5, size=4),
    "outputs": jm.Outputs(0.5),
    "smooth": jm.Smooth(jm.Int(4, group=16)),
    "dynamic": jm.Dynamic(jm.Int(8)),
    "cast": jm.Cast("bfloat16"),
    "double_quant": DOUBLE,
    "permuted": jm.Permute(jm.NM(2, 4)),
    "fake": jm.Fake(jm.Int(4)),
}
STACKED = {
    "shared": jm.Shared(2),
    "shared_encoded": jm.Shared(1, order="cycle", codec=jm.Int(8)),
    "shared_and_more": jm.Sum((jm.Shared(2), jm.LowRank(1))),
    "int4_stacked": jm.Int(4),
}
PLAN = CODECS | STACKED
PLAN |= {
    "keep": jm.Keep(),
    "nothing": None,
    "smallest": jm.Smallest((jm.Csr(0.1), jm.Bitmask(0.1))),
    "search": jm.Search(jm.Int(4)),
    "hqq": jm.HQQ(jm.Int(4, group=32)),
    "gptq": jm.GPTQ(jm.Int(4), act_order=True),
    "qera": jm.QERA(jm.Int(3), 2),
    "sparsegpt": jm.SparseGPT(jm.NM(2, 4)),
    "wanda": jm.Wanda(jm.NM(2, 4)),
    "ria": jm.RIA(jm.Bitmask(0.5)),
    "refit": jm.Refit(jm.Bitmask(0.5)),
    "basis": jm.Basis(4, groups=2),
    "layers[0:2]/up": jm.Int(2),
}


def weight(*shape: int, dtype: str = "float32", seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def encoded(codec, w: jax.Array):
    """The leaf of `codec`; where it needs calibration, of ones."""
    k = w.shape[-2]
    ones = jm.Moments(jnp.eye(k), jnp.zeros(k), jnp.ones(k), jnp.ones(()))
    try:
        return codec.encode(w)
    except (TypeError, ValueError):
        return codec.encode(w, stats=ones)


def tree() -> dict:
    w, stack = weight(32, 8), weight(4, 16, 4)
    leaves = {name: encoded(codec, w) for name, codec in CODECS.items()}
    leaves |= {name: encoded(codec, stack) for name, codec in STACKED.items()}
    leaves["bfloat16"] = jm.Int(4, group=16).encode(weight(32, 8, dtype="bfloat16"))
    leaves["vocabulary"] = jm.Int(8).encode(weight(12, 16), (-1,))  # the rows of an embedding
    parts = {"w[0:1]": jm.Int(4), "w[1:3]": jm.Bitmask(0.5)}
    leaves["segmented"] = jm.encode({"w": stack}, parts)["w"]
    x = weight(8, 32, seed=1)
    run = jm.lift(lambda leaf, x: x @ leaf)
    leaves["static"] = jm.static(leaves["dynamic"], run, [(x,)], method="minmax")
    layer = {"kernel": weight(64, 64), "bias": jnp.ones(64)}
    leaves["adamw"] = optax.adamw(1e-3).init({"w": weight(4, 8)})
    leaves["adam_in_int8"] = in_int8(optax.adam(1e-3)).init(layer)
    leaves["moments"] = jm.stats(lambda p, x: x @ p["w"], {"w": w}, [(x,)], moments="diag")
    leaves["nnx"] = nnx.state(nnx.Linear(4, 3, rngs=nnx.Rngs(0)))
    leaves["frozen"] = FrozenDict({"a": {"b": jnp.arange(3)}})
    leaves["arrays"] = {
        "nested": [(jnp.arange(5, dtype=jnp.int4), {"deep": weight(3, 2, dtype="float16")})],
        "numpy": np.arange(6.0).reshape(2, 3),
        "bool": jnp.array([True, False, True]),
        "float8": jnp.arange(4.0).astype(jnp.float8_e4m3fn),
    }
    plain = {"step": 3, "rate": 0.1, "name": "tiny", "none": None, "scalar": np.float32(2.5)}
    return {"leaves": leaves, "plain": plain | {"dtype": jnp.bfloat16, "codec": DOUBLE}}


def compressed_tree() -> dict:
    w = weight(32, 8, dtype="bfloat16")
    leaves = {"dense": w, "zeros": jnp.zeros((64, 64)), "int4": jm.Int(4, group=16).encode(w)}
    return {"leaves": leaves | {"bitmask": jm.Bitmask(0.3).encode(w)}}


def expected(name: str, leaf) -> dict[str, np.ndarray]:
    """What the test compares with: the arrays of the leaf, and the decoded leaf's."""
    arrays = {f"{name}/{i}": of_numpy(a) for i, a in enumerate(jax.tree.leaves(leaf))}
    decoded = jax.tree.leaves(jm.decode(leaf))
    return arrays | {f"{name}/decoded/{i}": of_numpy(a) for i, a in enumerate(decoded)}


def of_numpy(a) -> np.ndarray:
    """The same numbers in a dtype that an .npz file knows."""
    a = np.asarray(a)
    return a.astype(np.float32) if a.dtype.kind == "V" or not a.dtype.isbuiltin else a


def model():
    config = Config(vocab=40, width=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8)
    ids = jnp.zeros((1, 4), jnp.int32)
    params = module(config).init(jax.random.key(0), ids)["params"]
    params = jax.tree.map(lambda a: a.astype(jnp.bfloat16).astype(jnp.float32), params)
    words = {word: i for i, word in enumerate(["<unk>", "one", "two", "three"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return jm.models.Model(config, params, tokenizer, "blank")


def main() -> None:
    jax.config.update("jax_disable_most_optimizations", True)  # compile quickly
    trees = {"saved_0_1_0": tree(), "saved_0_1_0_compressed": compressed_tree()}
    arrays = {}
    for file, content in trees.items():
        jm.save(HERE / f"{file}.jm", content, compress="compressed" in file)
        for name, leaf in content["leaves"].items():
            arrays |= expected(f"{file}/{name}", leaf)
    whole = model()
    rules = {
        "layers/attn/.*kernel": jm.Int(4, group=16),
        "layers[0]/mlp/.*kernel": jm.Int(8),
        "layers[1]/mlp/.*kernel": jm.Sum((jm.NM(2, 4), jm.LowRank(1))),
        "embed/.*": jm.Codebook("nf4", group=16),
    }
    params = jm.encode(whole.params, jm.choose(whole.params, rules))
    whole.save(HERE / "model_0_1_0", params)
    leaves = jax.tree.leaves(params)
    arrays |= {f"model/{i}": of_numpy(a) for i, a in enumerate(leaves)}
    ids = jnp.arange(6, dtype=jnp.int32)[None]
    arrays["model/logits"] = np.asarray(jax.jit(whole.apply)(params, ids))
    np.savez_compressed(HERE / "saved_0_1_0.npz", **arrays)
    evaluation = jm.Evaluation(
        tokens=2046,
        resident=1000,
        peak=2000,
        perplexity=Estimate(20.1, 17.5, 23.1),
        kl=Estimate(0.15),
        kl_by_window=(0.1, 0.2),
    )
    recipe = jm.Recipe(
        "llama-8b",
        "tpu v5e:2x4",
        "lora",
        16,
        4096,
        encoding=jm.Codebook("nf4", group=64),
        state="int8",
        remat=jm.Remat("dots"),
        micro=2,
        chunk=256,
        rank=8,
    )
    texts = {"plan": jm.Plan(PLAN), "recipe": recipe, "evaluation": evaluation}
    texts = {name: value.to_json() for name, value in texts.items()}
    (HERE / "texts_0_1_0.json").write_text(json.dumps(texts, indent=1) + "\n")


if __name__ == "__main__":
    main()
