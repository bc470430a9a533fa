"""Memory of a training step that releases gradients, by the TPU compiler: released_step.json.

    pip install -e ".[tpu]"
    python experiments/memory/released_step.py [CASE ...]

`jm.train.released` trains the shapes of Llama 3.2 1B by column-normalized SGD (SCALE); those of
Llama 3.1 8B are in full_training.py. A row has the compiled peak, and what it is made of by
arithmetic: weights, optimizer state, inputs of all layers, the gradient of a layer, that of the
largest other array. "usual" is `jax.value_and_grad` with full remat. Nothing is run; a case that
the JSON has is not compiled again.
"""

import dataclasses
import json
import pathlib
import sys
import time

import jax
import jax.numpy as jnp

import jaxmem as jm
from jaxmem.optimizers import apply_rounded, in_bfloat16, in_int8, scale_sgd
from jaxmem.train import accumulate, released, train_state

PATH = pathlib.Path(__file__).with_suffix(".json")


@dataclasses.dataclass(frozen=True)
class Case:
    """A step to compile."""

    model: str
    device: str
    batch: int
    seq: int
    micro: int
    weights: str = "bfloat16"
    limit: float | None = None  # GiB
    usual: bool = False


CASES = {
    "1b, 8 x 128": Case("llama-1b", "tpu v5e:1x1", 8, 128, 8),
    "1b, 8 x 128, usual": Case("llama-1b", "tpu v5e:1x1", 8, 128, 8, usual=True),
    "1b, 1 x 128": Case("llama-1b", "tpu v5e:1x1", 1, 128, 1),
    "1b, 8 x 2048": Case("llama-1b", "tpu v5e:1x1", 8, 2048, 8),
}


def usual_step(loss, optimizer, micro):
    """A step that knows all gradients before it updates."""

    def step(state, ids):
        value, slope = accumulate(loss, micro)(state["params"], ids)
        updates, opt = optimizer.update(slope, state["opt"], state["params"])
        count = state["step"] + 1
        params = apply_rounded(state["params"], updates, count)
        return {"params": params, "opt": opt, "step": count}, value

    return step


def compiled(case: Case) -> dict:
    """The row of a case."""
    remat = jm.Remat("full" if case.usual else "none")
    sizes = (case.batch, case.seq)
    recipe = jm.Recipe(case.model, case.device, "train", *sizes, remat=remat, micro=case.micro)
    built, config = jm.build(recipe), jm.models.load(case.model).config
    params = built.arguments[0]["params"]
    if case.weights == "int8":
        plan = jm.choose(params, {".*kernel": jm.Int(8), "embed/embedding": jm.Int(8)})
        params = jax.eval_shape(lambda params: jm.encode(params, plan), params)
    optimizer = (in_int8 if case.weights == "int8" else in_bfloat16)(scale_sgd(1e-3))
    state = jax.eval_shape(lambda params: train_state(params, optimizer), params)
    make = usual_step if case.usual else released
    args = (built.loss, optimizer, case.micro) if case.usual else (built.loss, optimizer)
    step = make(*args) if case.usual else make(*args, micro=case.micro)
    ids = jax.ShapeDtypeStruct(sizes, jnp.int32)
    limit = None if case.limit is None else int(case.limit * 2**30)
    start = time.perf_counter()
    memory = jm.memory(jax.jit(step, donate_argnums=0), state, ids, device=case.device, limit=limit)
    dense = built.arguments[0]["params"]
    others = {name: tree for name, tree in dense.items() if name != "layers"}
    weights, opt = jm.nbytes(state["params"]), jm.nbytes(state["opt"])
    return dataclasses.asdict(case) | {
        "peak": memory.peak,
        "only_estimated": memory.text is None,  # where the estimate is over the limit
        "weights": weights,
        "optimizer_state": opt,
        "peak_without_both": memory.peak - weights - opt,
        "layer_inputs": config.layers * case.batch * case.seq * config.width * 2,
        "layer_gradient": jm.nbytes(dense["layers"]) // config.layers,
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
