"""A mixture of the shapes of Qwen3-30B-A3B on eight TPU chips: writes mixture_tpu.json.

    pip install -e ".[tpu]"
    python experiments/memory/mixture_tpu.py

The weights are shapes, encoded as shapes. `jm.plan` chooses how to serve one sequence with experts
divided over the chips: it compiles a step of generation and the reading of a prompt; nothing is
run. The floor of traffic is what one token must read if all its experts are on one chip: 8 of 128
experts of each layer, every other weight but the embedding, and the cache.
"""

import json
import pathlib

import jax

import jaxmem as jm
from jaxmem.architectures import decoder
from jaxmem.compiler import cost_analysis, hlo
from jaxmem.models import Model

CHIPS, LENGTH, MESH = "tpu v5e:2x4", 4096, {"expert": 8}
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
    """What the planned step takes with all matrices encoded by `codec`."""
    config = decoder.Config.from_hf(QWEN3_30B_A3B)
    model = Model(config, decoder.module(config), None, "qwen3-30b-a3b, shapes only")
    options = {"device": CHIPS, "task": "serve", "batch": 1, "seq": LENGTH, "most": 1}
    tell = lambda row: print(row.status, row.knobs.summary, f"{row.peak:,}", flush=True)
    planned = jm.plan(model, encodings=[codec], meshes=[MESH], tell=tell, **options)

    cache, params, *_ = jm.build(planned.recipe, model=model).arguments
    leaves = dict(zip(jm.paths(params), jax.tree.leaves(params, is_leaf=jm.is_encoded)))
    of_experts = jm.nbytes([x for path, x in leaves.items() if "/experts/" in path])
    others = jm.nbytes([x for path, x in leaves.items() if "/experts/" not in path])
    read = others - jm.nbytes(leaves["embed/embedding"]) + jm.nbytes(cache)
    floor = of_experts * config.mixture.per_token // config.mixture.experts + read
    out = {"weights": name, "expert_bytes": of_experts, "other_bytes": others, "floor": floor}
    out |= {"recipe": json.loads(planned.recipe.to_json())}
    for program, m in planned.chosen.programs.items():
        sizes = {"arguments_of_a_chip": m.arguments, "temp_of_a_chip": m.temp, "peak": m.peak}
        sizes |= {"traffic_of_a_chip": m.traffic, "received_by_a_chip": m.collectives}
        sizes |= {"seconds_estimated": m.seconds}
        sizes |= {"heaviest": cost_analysis.heaviest(hlo.read(m.text), 4)}
        out[program] = sizes
    out["ratio"] = round(out["step"]["traffic_of_a_chip"] / floor, 4)
    print(out, flush=True)
    return out


def main() -> None:
    results = {
        "command": "python experiments/memory/mixture_tpu.py",
        "jax": jax.__version__,
        "backend": "a TPU target, compiled and not run",
        "device": CHIPS,
        "mesh": MESH,
        "config": QWEN3_30B_A3B,
        "cache_tokens": LENGTH,
        "seed": None,
        "rows": [row(name, codec) for name, codec in CODECS.items()],
    }
    path = pathlib.Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
