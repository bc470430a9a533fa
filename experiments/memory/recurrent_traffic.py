"""Memory traffic of a recurrent language model of flax, encoded: writes recurrent_traffic.json.

    pip install -e ".[tpu]"
    python experiments/memory/recurrent_traffic.py

`nn.RNN(nn.OptimizedLSTMCell(256))` reads 64 tokens. The cell joins the kernels of its gates in
every step; its kernels and the table of words are encoded. The programs are compiled for one TPU
v5e and for this machine's CPU, and not run. The floor is what the program must move: on the TPU,
which keeps such a cell on the chip, the weights, the tokens and the logits once (`ratio_to_rows`
counts only the rows of the table that are looked up); on the CPU, where a cell is decoded before
the loop, the decoded cell once a token, as in the dense program, and the head and the activations
once. `lift` goes below the floor of a CPU: it multiplies the inputs of all tokens before the loop.
"""

import json
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp

import jaxmem as jm

WIDTH, VOCAB, TOKENS = 256, 512, 64
CODECS = {"float32": None, "int8": jm.Int(8), "int4 in groups of 32": jm.Int(4, group=32)}


class LM(nn.Module):
    """A recurrent language model."""

    @nn.compact
    def __call__(self, ids):
        x = nn.Embed(VOCAB, WIDTH)(ids)
        x = nn.RNN(nn.OptimizedLSTMCell(WIDTH), name="rnn")(x)
        return nn.Dense(VOCAB)(x)


def row(device, batch, name, codec):
    """What a program moves for `batch` texts."""
    net, ids = LM(), jax.ShapeDtypeStruct((batch, TOKENS), jnp.int32)
    params = jax.eval_shape(net.init, jax.random.key(0), ids)["params"]
    apply = lambda params, ids: net.apply({"params": params}, ids)
    if codec:
        plan, uses = jm.choose(params, {".*(kernel|embedding)": codec}), jm.uses(apply, params, ids)
        params = jax.eval_shape(lambda params: jm.encode(params, plan, uses=uses), params)
    options = {} if device == "cpu" else {"device": device}
    m = jm.memory(jm.lift(apply), params, ids, **options)
    cell = next(tree for path, tree in params.items() if "Cell" in path)
    logits = batch * TOKENS * 4 * VOCAB
    if device == "cpu":
        decoded = jm.nbytes(jax.eval_shape(jm.decode, cell))
        activations = batch * TOKENS * 4 * 4 * WIDTH  # rows, inputs and states
        floor = TOKENS * decoded + jm.nbytes(params["Dense_0"]) + activations + logits
    else:
        floor = jm.nbytes(params) + 4 * ids.size + logits
    # Of the table only the rows of the tokens, where it has more rows than there are tokens.
    unread = jm.nbytes(params["Embed_0"]) * max(0, VOCAB - ids.size) // VOCAB
    floor_of_rows = floor - (0 if device == "cpu" else unread)
    return {
        "device": device,
        "batch": batch,
        "weights": name,
        "cell_bytes": jm.nbytes(cell),
        "traffic": m.traffic,
        "floor": floor,
        "ratio": round(m.traffic / floor, 3),
        "ratio_to_rows": round(m.traffic / floor_of_rows, 3),
        "temp": m.temp,
    }


if __name__ == "__main__":
    rows = []
    for device in ("tpu v5e:1x1", "cpu"):
        for batch in (1, 8):
            for name, codec in CODECS.items():
                rows.append(row(device, batch, name, codec))
                print(rows[-1], flush=True)
    text = json.dumps({"jax": jax.__version__, "rows": rows}, indent=1)
    pathlib.Path(__file__).with_suffix(".json").write_text(text + "\n")
