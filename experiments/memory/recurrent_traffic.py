"""Memory traffic of a recurrent language model of flax, encoded: writes recurrent_traffic.json.

    pip install -e ".[tpu]"
    python experiments/memory/recurrent_traffic.py

`nn.RNN(nn.OptimizedLSTMCell(width))` reads 64 tokens. The cell joins the kernels of its gates in
every step; its kernels and the table of words are encoded. The programs are compiled for one TPU
v5e and for this machine's CPU, and not run. Both decode a cell before the loop, if they keep it
near. The floor is what the program must move: on the TPU the weights, the tokens and the logits
once (`ratio_to_rows` counts only the rows of the table that are looked up); on the CPU the decoded
cell once a token, as in the dense program, and the head and the activations once. `lift` goes below
the floor of a CPU: it multiplies the inputs of all tokens before the loop. `steps` is the floor of
a cell that lies in main memory, and is read once a token.
"""

import itertools
import json
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp

import jaxmem as jm

TOKENS = 64
SIZES = ((256, 512), (256, 8192), (1024, 8192), (2048, 512))  # units, words
KEYS = ("device", "units", "words", "batch", "weights")
CODECS = {"float32": None, "int8": jm.Int(8), "int4 in groups of 32": jm.Int(4, group=32)}


class LM(nn.Module):
    """A recurrent language model."""

    width: int
    words: int

    @nn.compact
    def __call__(self, ids):
        x = nn.Embed(self.words, self.width)(ids)
        x = nn.RNN(nn.OptimizedLSTMCell(self.width), name="rnn")(x)
        return nn.Dense(self.words)(x)


def row(device, width, words, batch, name, codec):
    """What a program moves for `batch` texts."""
    net, ids = LM(width, words), jax.ShapeDtypeStruct((batch, TOKENS), jnp.int32)
    params = jax.eval_shape(net.init, jax.random.key(0), ids)["params"]
    apply = lambda params, ids: net.apply({"params": params}, ids)
    if codec:
        plan, uses = jm.choose(params, {".*(kernel|embedding)": codec}), jm.uses(apply, params, ids)
        params = jax.eval_shape(lambda params: jm.encode(params, plan, uses=uses), params)
    options = {} if device == "cpu" else {"device": device}
    m = jm.memory(jm.lift(apply), params, ids, **options)
    cell = next(tree for path, tree in params.items() if "Cell" in path)
    logits = batch * TOKENS * 4 * words
    if device == "cpu":
        decoded = jm.nbytes(jax.eval_shape(jm.decode, cell))
        activations = batch * TOKENS * 4 * 4 * width  # rows, inputs and states
        floor = TOKENS * decoded + jm.nbytes(params["Dense_0"]) + activations + logits
    else:
        floor = jm.nbytes(params) + 4 * ids.size + logits
    # Of the table only the rows of the tokens, where it has more rows than there are tokens.
    unread = jm.nbytes(params["Embed_0"]) * max(0, words - ids.size) // words
    floor_of_rows = floor - (0 if device == "cpu" else unread)
    return {
        "device": device,
        "units": width,
        "words": words,
        "batch": batch,
        "weights": name,
        "cell_bytes": jm.nbytes(cell),
        "traffic": m.traffic,
        "floor": floor,
        "ratio": round(m.traffic / floor, 3),
        "ratio_to_rows": round(m.traffic / floor_of_rows, 3),
        "steps": floor + (0 if device == "cpu" else (TOKENS - 1) * jm.nbytes(cell)),
        "temp": m.temp,
    }


if __name__ == "__main__":
    path = pathlib.Path(__file__).with_suffix(".json")
    rows = json.loads(path.read_text("utf-8"))["rows"] if path.exists() else []
    known = {tuple(x[key] for key in KEYS) for x in rows}
    for device, (width, words) in itertools.product(("tpu v5e:1x1", "cpu"), SIZES):
        for batch, name in itertools.product((1, 8), CODECS):
            key = (device, width, words, batch, name)
            if key not in known and (device, width) != ("cpu", 2048):
                rows.append(row(*key, CODECS[name]))
                print(rows[-1], flush=True)
                text = json.dumps({"jax": jax.__version__, "rows": rows}, indent=1)
                path.write_text(text + "\n", "utf-8")
