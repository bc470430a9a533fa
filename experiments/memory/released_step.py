"""Memory of a training step that releases gradients, by the TPU compiler: released_step.json.

    pip install -e ".[tpu]"
    python experiments/memory/released_step.py [CASE ...]

A recipe with `release=True` trains the shapes of TinyLlama 1.1B, and of Llama 3.2 1B, whose
embedding is the head, too, by column-normalized SGD (SCALE); those of Llama 3.1 8B are in
full_training.py. A row has the compiled peak, and what it is made of by arithmetic: weights,
optimizer state, inputs of all layers in bfloat16, the gradient of a layer, that of the largest
other array. `bar` is 1.3 times the gradient of a layer and the inputs. Nothing is run; a case that
the JSON has is not compiled again.
"""

import dataclasses
import json
import pathlib
import sys
import time

import jax

import jaxmem as jm
from jaxmem.architectures import llama
from jaxmem.models import Model

PATH = pathlib.Path(__file__).with_suffix(".json")
TINYLLAMA = llama.Config(
    vocab=32_000, width=2048, ffn=5632, layers=22, heads=32, kv_heads=4, head_dim=64
)


@dataclasses.dataclass(frozen=True)
class Case:
    """A step to compile."""

    model: str
    device: str
    batch: int
    seq: int
    micro: int
    held: str | None = None  # how the inputs of layers wait


CASES = {
    "1b, 8 x 128": Case("llama-1b", "tpu v5e:1x1", 8, 128, 8),
    "1b, 8 x 2048, in int8": Case("llama-1b", "tpu v5e:1x1", 8, 2048, 8, "int8"),
    "1.1b, 8 x 2048, in int8": Case("tinyllama-1.1b", "tpu v5e:1x1", 8, 2048, 8, "int8"),
    "1.1b, 16 x 512, in int8": Case("tinyllama-1.1b", "tpu v5e:1x1", 16, 512, 16, "int8"),
}


def compiled(case: Case) -> dict:
    """The row of a case."""
    sizes = (case.batch, case.seq)
    held = jm.Remat("full", held=case.held)
    knobs = dict(micro=case.micro, remat=held, release=True, optimizer="scale", state="bfloat16")
    recipe = jm.Recipe(case.model, case.device, "train", *sizes, **knobs)
    tiny = Model(TINYLLAMA, llama.module(TINYLLAMA), None, case.model)
    model = tiny if case.model == "tinyllama-1.1b" else jm.models.load(case.model)
    built, config = jm.build(recipe, model=model), model.config
    state = built.arguments[0]
    params = state["params"]
    start = time.perf_counter()
    memory = jm.memory(built.step, *built.arguments, device=case.device)
    others = {name: tree for name, tree in params.items() if name != "layers"}
    inputs = config.layers * case.batch * case.seq * config.width * 2
    of_layer = jm.nbytes(params["layers"]) // config.layers
    weights, opt = jm.nbytes(params), jm.nbytes(state["opt"])
    return dataclasses.asdict(case) | {
        "peak": memory.peak,
        "only_estimated": memory.text is None,  # where the estimate is over the limit
        "weights": weights,
        "optimizer_state": opt,
        "peak_without_both": memory.peak - weights - opt,
        "bar": int(1.3 * of_layer + inputs),
        "layer_inputs": inputs,
        "layer_gradient": of_layer,
        "largest_other_gradient": max(map(jm.nbytes, jax.tree.leaves(others))),
        "hash": memory.hash,
        "versions": memory.versions,
        "seconds": round(time.perf_counter() - start, 1),
    }


def main() -> None:
    rows = json.loads(PATH.read_text()) if PATH.exists() else {}
    for name in sys.argv[1:] or CASES:
        if name in rows:
            continue
        try:
            rows[name] = compiled(CASES[name])
        except jm.CompileError as e:
            rows[name] = dataclasses.asdict(CASES[name]) | {"error": str(e)[:400]}
        print(name, rows[name], flush=True)
        PATH.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
