"""The laws of a model, for every reference decoder of tests/reference: decoder_laws.json.

    pip install -e ".[test]"
    python experiments/quality/decoder_laws.py

CI checks them for one member of each mechanism. A row has, for a member whose kernels are in 4 bits
(groups of 8):

- `kernels`: those that a product of the model reads, of all;
- `encoded`: the largest difference of its logits from those of the decoded weights, over the
  largest logit, and `on_four_devices` the same on a mesh of fsdp=2 and tensor=2;
- `whole_weights`: "none" if no weight was decoded whole on the way, else the first that was;
- `with_stats`: kernels that have moments of their inputs, from two batches;
- `gptq`: the mean over kernels of GPTQ's error on those inputs over that of rounding;
- `fit`: bytes over the limit of a fit in 4.5 bits, and `fit_error`, its logits' mean squared error
  over their variance.

A law that a member refuses has the message in its place. Members in the file are left alone.
"""

import argparse
import json
import math
import os
import pathlib
import sys

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"

import jax
import jax.numpy as jnp
import numpy as np

import jaxmem as jm

ROOT = pathlib.Path(__file__).resolve().parents[2]
OUT = pathlib.Path(__file__).with_suffix(".json")
INT4, GROUP, BITS = jm.Int(4, group=8), 8, 4.5


def difference(got: jax.Array, want: jax.Array) -> float:
    return float(jnp.abs(got - want).max() / jnp.abs(want).max())


def whole_weights(model: jm.models.Model, enc: dict, ids: jax.Array) -> str:
    """ "none", or what the first operation that wants a whole dense weight says."""
    try:
        jax.eval_shape(jm.lift(model._forward, on_decode="error"), enc, ids)
    except TypeError as error:
        return str(error)[:120]
    return "none"


def gptq_ratio(model: jm.models.Model, uses: dict, stats: dict, paths: list[str]) -> float:
    """The mean over kernels of the error on their inputs, of GPTQ over rounding."""
    leaves = dict(zip(jm.paths(model.params), jax.tree.leaves(model.params)))
    ratios = []
    for path in paths:
        tree, moments = {path: leaves[path]}, stats[path].second
        if (
            moments.ndim != leaves[path].ndim
        ):  # the diagonal only: more inputs than Gram matrices take
            continue
        errors = []
        for codec in (INT4, jm.GPTQ(INT4)):
            leaf = jm.encode(tree, {path: codec}, uses=uses, stats={path: stats[path]})[path]
            e = (leaf.decode() - leaves[path]).astype(jnp.float32)
            errors.append(float(jnp.einsum("...kn,...kl,...ln->", e, moments, e)))
        if errors[0] > 0:
            ratios.append(errors[1] / errors[0])
    return round(float(np.mean(ratios)), 4) if ratios else math.nan


def laws(name: str) -> dict:
    """The row of one member."""
    from reference_models import member

    config, params, file, _ = member(name)
    model, ids = jm.models.Model(config, params, None, name), jnp.asarray(file["ids"], jnp.int32)
    uses = jm.uses(model.apply, params, ids)
    kernels = [path for path in jm.paths(params) if path.endswith("kernel")]
    enc = jm.encode(params, jm.choose(params, {".*kernel": INT4}), uses=uses)
    got = jax.jit(model.apply)(enc, ids)
    want = jax.jit(model.apply)(jm.decode(enc), ids)
    mesh = jm.mesh(fsdp=2, tensor=2)
    placed = jm.shard(enc, jm.shardings(enc, mesh, jm.layouts.fsdp_tensor(config, mesh)))
    stats = jm.stats(model.apply, params, [(ids,), (jnp.flip(ids, 1),)])
    known = [path for path in kernels if path in stats]
    weights = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
    limit = int(weights * BITS / 8)
    row = {
        "kernels": [sum(path in uses for path in kernels), len(kernels)],
        "encoded": difference(got, want),
        "on_four_devices": difference(jax.jit(model.apply)(placed, ids), want),
        "whole_weights": whole_weights(model, enc, ids),
        "with_stats": len(known),
        "gptq": gptq_ratio(model, uses, stats, known),
    }
    try:
        fitted = jm.fit(model, limit)
    except ValueError as error:  # a tiny model may be too odd for groups of 32
        return row | {"fit": str(error)}
    dense, logits = (jax.jit(model.apply)(x, ids) for x in (params, fitted.params))
    row["fit"] = round(fitted.nbytes / limit, 4)
    row["fit_error"] = round(float(((dense - logits) ** 2).mean() / dense.var()), 5)
    return row


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    sys.path.append(str(ROOT / "tests"))
    from reference_models import MEMBERS

    table = json.loads(OUT.read_text()) if OUT.exists() else {"rows": {}}
    table |= {"command": "python experiments/quality/decoder_laws.py", "jax": jax.__version__}
    table |= {"backend": "cpu", "seed": 0}
    for name in MEMBERS:
        if name in table["rows"]:
            continue
        try:
            table["rows"][name] = laws(name)
        except (ValueError, NotImplementedError) as error:
            table["rows"][name] = {"refused": str(error)}
        print(name, table["rows"][name], flush=True)
        jax.clear_caches()
        OUT.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
