"""A lifted function under every transformation of JAX, with every codec: the decoded values.

    python experiments/reliability/transformations.py --combinations 360

The function is a scan over two layers, a product and a look-up. A transformation of the lifted
function must give what the same transformation gives on decoded weights, or be refused.
"""

import argparse
import collections
import itertools
import json
import pathlib
import random
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from outcomes import BAD, once, outcome

import jaxmem as jm

SECONDS = 300.0  # to compile and run one combination
TOLERANCE = dict(rtol=1e-3, atol=1e-3)
CODECS = [
    jm.Int(8), jm.Int(4), jm.Int(3, group=16), jm.Int(4, group=16, symmetric=False),
    jm.Cast("bfloat16"), jm.Float("e4m3"), jm.Float("mxfp4"), jm.Codebook("nf4", group=16),
    jm.KMeans(3), jm.Affine(4, group=16), jm.Planes(group=16), jm.LowRank(4),
    jm.Sum((jm.Int(4), jm.LowRank(2))), jm.DoubleQuant(jm.Affine(4, group=8)),
    jm.Search(jm.Int(4, group=16)), jm.Bitmask(0.5), jm.NM(2, 4), jm.Csr(0.1), jm.Coo(0.02),
    jm.Blocks(0.5, block=(8, 8)), jm.Inputs(0.5, size=4), jm.Outputs(0.5),
    jm.Chain((jm.NM(2, 4), jm.Int(4))), jm.Permute(jm.NM(2, 4), steps=4),
]  # fmt: skip


def network(params: dict, x: jax.Array) -> jax.Array:
    """tanh of products with stacked layers, in a scan, and with rows of a table."""
    hidden = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params["layers"])[0]
    return hidden @ params["table"][jnp.arange(16)].T


def total(fn: Callable) -> Callable:
    """The sum of squares of what `fn` returns."""
    return lambda params, x: (fn(params, x) ** 2).sum()


def product_of_gradient(f: Callable) -> Callable:
    """The gradient of the squared gradient with respect to x."""
    squared = lambda p, x: (jax.grad(total(f), 1)(p, x) ** 2).sum()
    return jax.grad(squared, 1)


TRANSFORMATIONS: dict[str, Callable] = {
    "call": lambda f: f,
    "jit": jax.jit,
    "vmap": lambda f: lambda p, x: jax.vmap(f, (None, 0))(p, x[:, None]),
    "grad": lambda f: jax.grad(total(f), 1),
    "value_and_grad": lambda f: jax.value_and_grad(total(f), 1),
    "jvp": lambda f: lambda p, x: jax.jvp(lambda x: f(p, x), (x,), (jnp.ones_like(x),)),
    "vjp": lambda f: lambda p, x: jax.vjp(lambda x: f(p, x), x)[1](jnp.ones((len(x), 16))),
    "linearize": lambda f: lambda p, x: jax.linearize(lambda x: f(p, x), x)[1](x),
    "checkpoint": lambda f: jax.grad(total(jax.checkpoint(f)), 1),
    "scan": lambda f: lambda p, x: jax.lax.scan(lambda _, x: (None, f(p, x[None])), None, x)[1],
    "map of grad": lambda f: (
        lambda p, x: jax.lax.map(lambda x: jax.grad(total(f), 1)(p, x[None]), x)
    ),
    "jacfwd": lambda f: lambda p, x: jax.jacfwd(lambda x: f(p, x))(x[:1]),
    "jacrev": lambda f: lambda p, x: jax.jacrev(lambda x: f(p, x))(x[:1]),
    "grad of grad": product_of_gradient,
    "hessian": lambda f: lambda p, x: jax.hessian(lambda x: total(f)(p, x))(x[:1]),
}


def run(
    combinations: int,
    seed: int = 0,
    *,
    log: pathlib.Path | None = None,
    before: dict[str, Any] | None = None,
    tell: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Counts of outcomes of `combinations` pairs of codec and transformation, drawn at random.

    Pairs whose outcome stands in the file `log` do not run again, nor those that `before` counts:
    what an earlier call with fewer combinations and the same seed returned.
    """
    pairs = list(itertools.product(range(len(CODECS)), TRANSFORMATIONS))
    random.Random(seed).shuffle(pairs)
    rng = np.random.default_rng(seed)
    counts = collections.Counter(before["counts"] if before else {})
    bad = list(before["bad"]) if before else []
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32) / 8
    params, x = {"layers": draw(2, 32, 32), "table": draw(64, 32)}, draw(3, 32)
    uses = jm.uses(network, params, x)
    for number, name in pairs[sum(counts.values()) : combinations]:
        codec, transformation = CODECS[number], TRANSFORMATIONS[name]

        def attempt(codec=codec, transformation=transformation) -> str:
            encoded = jm.encode(params, dict.fromkeys(params, codec), uses)
            got = transformation(jm.lift(network))(encoded, x)
            want = transformation(network)(jm.decode(encoded), x)
            close = jax.tree.map(lambda a, b: np.allclose(a, b, **TOLERANCE), got, want)
            return "right" if all(jax.tree.leaves(close)) else "wrong"

        attempted = lambda attempt=attempt: outcome(attempt, [""], SECONDS)
        result, text = once(log, f"{seed} {codec} {name}", attempted)
        counts[result] += 1
        if result in BAD:
            bad.append([str(codec), name, result, text])
            tell(f"{result:8} {name} of {codec}: {text}")
    return {"counts": counts, "bad": bad}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--combinations", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(json.dumps(run(options.combinations, options.seed)["counts"]))
