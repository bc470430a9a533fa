"""Second derivatives through products with every codec of the tests: second_derivatives.json.

    pip install -e ".[test]"
    python experiments/reliability/second_derivatives.py

The function has two layers of one stacked weight: written one after the other, in a scan, in a scan
of a body with `jax.checkpoint`, and mapped over its inputs. A row has, for each of these, the
largest difference of the gradient of a gradient, of a directional derivative of the gradient (jvp),
and of the Hessian, from those of the decoded weight, over their largest number; or, where a product
refuses to be differentiated twice, its message. Rows that the file has for a version of JAX are
left alone.
"""

import json
import pathlib
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

import jaxmem as jm

ROOT = pathlib.Path(__file__).resolve().parents[2]
OUT = pathlib.Path(__file__).with_suffix(".json")
SEED = 0
WIDTH = 32


def layer(x: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
    return jnp.tanh(x @ w / WIDTH**0.5), None


def one_after_another(w: jax.Array, x: jax.Array) -> jax.Array:
    return layer(layer(x, w[0])[0], w[1])[0]


NETWORKS: dict[str, Callable] = {
    "no scan": one_after_another,
    "scan": lambda w, x: lax.scan(layer, x, w)[0],
    "scan, remat": lambda w, x: lax.scan(jax.checkpoint(layer), x, w)[0],
    "vmap": lambda w, x: jax.vmap(lambda x: lax.scan(layer, x[None], w)[0])(x),
}


def second_derivatives(network: Callable, w: object, x: jax.Array) -> dict[str, jax.Array]:
    loss = lambda x: (network(w, x) ** 2).sum()
    gradient = jax.grad(loss)
    return {
        "grad of grad": jax.grad(lambda x: (gradient(x) ** 2).sum())(x),
        "jvp of grad": jax.jvp(gradient, (x,), (jnp.flip(x),))[1],
        "hessian": jax.hessian(loss)(x[:1]),
    }


def row(codec: object) -> dict[str, object]:
    """{network: {derivative: difference} or the error}."""
    from cheap_jit import jit

    draw = lambda i, *shape: jax.random.normal(jax.random.key(SEED + i), shape)
    w, x = draw(0, 2, WIDTH, WIDTH), draw(1, 2, WIDTH)
    stats = None
    if getattr(codec, "calibrated", False):
        scanned = lambda p, x: NETWORKS["scan"](p["w"], x)
        stats = jm.stats(scanned, {"w": w}, [(x,)])
    leaf = jm.encode({"w": w}, {"w": codec}, stats=stats)["w"]
    run = lambda network, w: jit(lambda w: second_derivatives(network, w, x))(w)
    difference = lambda a, b: float(jnp.abs(a - b).max() / jnp.abs(b).max())
    want, differences = run(one_after_another, jm.decode(leaf)), {}
    for name, network in NETWORKS.items():
        try:
            differences[name] = jax.tree.map(difference, run(jm.lift(network), leaf), want)
        except (NotImplementedError, TypeError, ValueError) as error:
            differences[name] = f"{type(error).__name__}: {error}".split("\n")[0]
    return differences


def main() -> None:
    sys.path.append(str(ROOT / "tests"))
    from contract_codecs import CODECS

    others = [jm.Fake(jm.Int(4)), jm.Dynamic(jm.Int(8)), jm.Shared(1), jm.Basis(4)]
    table = json.loads(OUT.read_text()) if OUT.exists() else {}
    table |= {"backend": jax.default_backend(), "seed": SEED, "width": WIDTH}
    rows = table.setdefault("rows", {}).setdefault(jax.__version__, {})
    for codec in [*CODECS, *others]:
        if str(codec) not in rows:
            rows[str(codec)] = row(codec)
            print(codec, rows[str(codec)], flush=True)
            jax.clear_caches()
            OUT.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
