"""Memory of encoded weights on a TPU v5e, by its compiler, against dense ones: tpu_memory.json.

    pip install -e ".[demo,tpu]"
    python experiments/memory/tpu_memory.py

One model is a linen language model of plain `nn.Dense` and `nn.MultiHeadDotProductAttention` layers
under `nn.scan`, of width 2048, the other is SmolLM2-135M, both in bfloat16. A program that decodes
the whole tree first is compiled too. No TPU is needed, and nothing is run.
"""

import json
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp

import jaxmem as jm

DEVICE = "tpu v5e:1x1"
CODECS = {
    "int8": jm.Int(8),
    "int4": jm.Int(4),
    "int4 g128": jm.Int(4, group=128),
    "int3 g64": jm.Int(3, group=64),
}
SHAPES = {"decode, batch 8": (8, 1), "prefill, 512 tokens": (1, 512)}


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        mask = nn.make_causal_mask(x[..., 0])
        h = nn.RMSNorm(param_dtype=jnp.bfloat16)(x)
        attention = nn.MultiHeadDotProductAttention(16, use_bias=False, param_dtype=jnp.bfloat16)
        x = x + attention(h, mask=mask)
        h = nn.RMSNorm(param_dtype=jnp.bfloat16)(x)
        dense = lambda n: nn.Dense(n, use_bias=False, param_dtype=jnp.bfloat16)
        return x + dense(2048)(nn.silu(dense(5632)(h)) * dense(5632)(h)), None


class LanguageModel(nn.Module):
    @nn.compact
    def __call__(self, ids):
        embed = nn.Embed(32_000, 2048, param_dtype=jnp.bfloat16)
        layers = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=8)
        x, _ = layers()(embed(ids), None)
        x = nn.RMSNorm(param_dtype=jnp.bfloat16)(x)
        return nn.Dense(32_000, use_bias=False, param_dtype=jnp.bfloat16)(x)


def linen():
    ids = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    params = jax.eval_shape(LanguageModel().init, jax.random.key(0), ids)
    return LanguageModel().apply, params


def smollm2():
    model = jm.models.load("smollm2-135m")
    narrow = lambda w: jax.ShapeDtypeStruct(w.shape, jnp.bfloat16)
    return model.apply, jax.tree.map(narrow, model.tensors, is_leaf=lambda x: hasattr(x, "shape"))


def rows(name, apply, params):
    for task, shape in SHAPES.items():
        ids = jax.ShapeDtypeStruct(shape, jnp.int32)
        uses = jm.uses(apply, params, ids)
        dense = jm.memory(apply, params, ids, device=DEVICE)
        yield row(name, task, "dense bf16", dense, params, dense)
        for label, codec in CODECS.items():
            plan = jm.choose(params, {".*(kernel|embedding)": codec})
            enc = jm.encode(params, plan, uses=uses)
            lifted = jm.memory(jm.lift(apply), enc, ids, device=DEVICE)
            yield row(name, task, label, lifted, enc, dense)
            if label == "int4":
                decoded = jm.memory(lambda p, x: apply(jm.decode(p), x), enc, ids, device=DEVICE)
                yield row(name, task, "int4, decode(tree)", decoded, enc, dense)


def row(model, task, encoding, m, tree, dense):
    mib = lambda n: round(n / 2**20, 2)
    size = jm.nbytes(tree)
    sizes = {
        "model": model,
        "task": task,
        "encoding": encoding,
        "nbytes_mib": mib(size),
        "arguments_mib": mib(m.arguments),
        "arguments_over_nbytes": round(m.arguments / size, 4),
        "temp_mib": mib(m.temp),
        "temp_less_dense_mib": mib(m.temp - dense.temp),
        "peak_mib": mib(m.peak),
    }
    print(json.dumps(sizes), flush=True)
    return sizes, m.versions


def main():
    measured_rows = [
        *rows("linen LM, width 2048, 8 layers", *linen()),
        *rows("SmolLM2-135M", *smollm2()),
    ]
    results = {
        "command": "python experiments/memory/tpu_memory.py",
        "versions": measured_rows[0][1],
        "backend": DEVICE + " (compiled, not run)",
        "seed": None,
        "model": jm.models.load("smollm2-135m").source,
        "rows": [r for r, _ in measured_rows],
    }
    path = pathlib.Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
