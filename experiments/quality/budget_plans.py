"""What a budget weighs errors by, judged by KL at equal bytes: writes budget_plans.json.

    pip install -e ".[demo]"
    python experiments/quality/budget_plans.py --text wikitext2_valid.txt

smollm2-135m, rotated. `budget` chooses bits for each weight, from 2 or from 3 to 8, by what
rounding to nearest loses on inputs of E[x²]. Each role in the network weighs the same, or what
`fisher` finds on 4 windows of 512 tokens. Every plan is then encoded by GPTQ of a weighted search
(the embedding by a search) and measured on 4 windows of 1,024 tokens of the first half of TEXT, its
last ones, and on 8 of its second half. 128 windows of 512 of the first half calibrate. A row that
is in the file already is not measured again.
"""

import argparse
import dataclasses
import hashlib
import json
import pathlib
import time

import jax
import jax.numpy as jnp
from quantize_smollm2 import TABLE, halves, remembered, write
from ways import CALIBRATION, TOGETHER, kept

import jaxmem as jm
from jaxmem import models
from jaxmem.models import downloading

LIMITS = (81_000_000, 66_000_000)  # 4.0 and 3.2 bits a weight
WAYS = [(s, least) for least in (2, 3) for s in ("role", "fisher")]


def solved(codec):
    return jm.GPTQ(jm.Search(codec))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=pathlib.Path, required=True)
    parser.add_argument("--keep", type=pathlib.Path)
    args = parser.parse_args()
    path = pathlib.Path(__file__).with_suffix(".json")
    model = models.rotate(models.load("smollm2-135m"))
    calibration, ids = halves(args.text, model)
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    windows = calibration[: CALIBRATION[0] * CALIBRATION[1]].reshape(-1, TOGETHER, CALIBRATION[1])
    batches = [(window,) for window in windows]
    stats = kept(args.keep, "moments all", lambda: (jm.stats(model.apply, model.params, batches),))
    stats = stats[0]
    uses = jm.uses(model.apply, model.params, *batches[0])
    few = jnp.asarray(calibration[: 4 * 512].reshape(4, 1, 512))
    fisher = jm.fisher(model.apply, model.params, [(ids,) for ids in few], seed=0)
    diag = {p: dataclasses.replace(m, second=m.diag) for p, m in stats.items()}
    judged = {"before": calibration[-4 * 1024 :], "after": ids[: 8 * 1024]}
    dense = {name: remembered(model, text, len(text) // 1024) for name, text in judged.items()}
    for sensitivity, least in WAYS:
        for limit in LIMITS:
            key = {"limit": limit, "sensitivity": sensitivity, "least_bits": least}
            if any(key.items() <= row.items() for row in rows):
                continue
            bits = [jm.Int(b, group=g, symmetric=False) for b in range(least, 9) for g in (64, 128)]
            how = {"uses": uses, "stats": diag, "candidates": bits}
            how |= {"sensitivity": fisher if sensitivity == "fisher" else None}
            start = time.perf_counter()
            plan = jm.budget(model.params, nbytes=limit, **how)
            seconds = time.perf_counter() - start
            found = {p: jm.Search(c) if p == TABLE else solved(c) for p, c in plan.items()}
            small = jm.encode(model.params, jm.Plan(found), uses=uses, stats=stats)
            tree, kl = jm.decode(small), {}
            for name, text in judged.items():
                how = {"reference": (dense[name][0], None)}
                kl[name] = vars(jm.evaluate(model.apply, tree, text, **how).kl)
            rows.append(
                key
                | {"bytes": jm.nbytes(small), "kl": kl}
                | {"seconds_to_plan": round(seconds, 1)}
                | {"plan": {p: f"{c.bits} g{c.group}" for p, c in plan.items()}}
            )
            print(key, {name: found["mean"] for name, found in kl.items()}, flush=True)
            about = {
                "command": f"python experiments/quality/budget_plans.py --text {args.text.name}",
                "jax": jax.__version__,
                "backend": jax.default_backend(),
                "model": model.source,
                "gguf_sha256": hashlib.sha256(
                    downloading.fetch("smollm2-135m").read_bytes()
                ).hexdigest(),
                "seed": 0,
            }
            write(path, about | {"rows": rows})


if __name__ == "__main__":
    main()
