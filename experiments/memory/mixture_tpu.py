"""A mixture of the shapes of Qwen3-30B-A3B on eight TPU chips: writes mixture_tpu.json.

    pip install -e ".[tpu]"
    python experiments/memory/mixture_tpu.py

The weights are shapes, encoded as shapes. A step of generation for one sequence is compiled with
experts divided over the chips; nothing is run. The floor of traffic is what one token must read if
all its experts are on one chip: 8 of 128 experts of each layer, every other weight but the
embedding, and the cache.
"""

import json
import pathlib

import jax
import jax.numpy as jnp

import jaxmem as jm
from jaxmem.architectures import decoder

CHIPS, LENGTH = "tpu v5e:2x4", 4096
QWEN3_30B_A3B = {
    "model_type": "qwen3_moe",
    "vocab_size": 151_936,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "max_position_embeddings": 40_960,
    "rope_theta": 1_000_000.0,
}
CODECS = {"int8": jm.Int(8), "int4 in groups of 128": jm.Int(4, group=128)}


def row(name, codec):
    """What one step takes with the experts encoded by `codec`."""
    config = decoder.Config.from_hf(QWEN3_30B_A3B)
    module = decoder.module(config)
    ids, position = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((1, 1), ()))
    params = jax.eval_shape(module.init, jax.random.key(0), ids)["params"]
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), params)
    plan = jm.choose(params, {".*experts/.*kernel": codec})
    params = jax.eval_shape(lambda params: jm.encode(params, plan), params)
    leaves = dict(zip(jm.paths(params), jax.tree.leaves(params, is_leaf=jm.is_encoded)))
    cache = jax.eval_shape(lambda: config.cache(1, LENGTH, jnp.bfloat16))

    mesh = jm.mesh(expert=8, device=CHIPS)
    where = jm.shardings(params, mesh, jm.layouts.expert(".*experts/.*kernel"))
    step = lambda params, *args: module.apply({"params": params}, *args)
    args = jm.shard(params, where), ids, cache, position
    m = jm.memory(jm.lift(step), *args, donate_argnums=2, device=CHIPS)

    of_experts = jm.nbytes([x for path, x in leaves.items() if "/experts/" in path])
    others = jm.nbytes([x for path, x in leaves.items() if "/experts/" not in path])
    read = others - jm.nbytes(leaves["embed/embedding"]) + jm.nbytes(cache)
    floor = of_experts * config.mixture.per_token // config.mixture.experts + read
    out = {"experts": name, "expert_bytes": of_experts, "other_bytes": others}
    out |= {"arguments_of_a_chip": m.arguments, "temp_of_a_chip": m.temp, "fits": m.fits}
    out |= {"traffic_of_a_chip": m.traffic, "floor": floor, "ratio": round(m.traffic / floor, 4)}
    out |= {"received_by_a_chip": m.collectives}
    print(out, flush=True)
    return out


def main() -> None:
    results = {
        "command": "python experiments/memory/mixture_tpu.py",
        "jax": jax.__version__,
        "backend": "a TPU target, compiled and not run",
        "device": CHIPS,
        "config": QWEN3_30B_A3B,
        "cache_tokens": LENGTH,
        "seed": None,
        "rows": [row(name, codec) for name, codec in CODECS.items()],
    }
    path = pathlib.Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
