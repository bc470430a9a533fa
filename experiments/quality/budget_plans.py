"""What a budget weighs errors by, compared by KL at equal bytes: writes budget_plans.json.

    pip install -e ".[demo]"
    python experiments/quality/budget_plans.py --text wikitext2_valid.txt

The model is smollm2-135m, rotated. `budget` chooses from 2 or from 3 to 8 bits for each weight, by
the error of rounding to nearest on inputs of E[x²]. Each role in the network weighs the same, or
what `fisher` measures on 4 windows of 512 tokens. Every plan is then encoded by GPTQ of a weighted
search (the embedding by a search). It is measured on the last 4 windows of 1,024 tokens of the
first half of TEXT, and on 8 windows of the second half. 128 windows of 512 tokens of the first half
calibrate. A row that is in the file already is not measured again.
"""

import argparse
import dataclasses
import hashlib
import itertools
import json
import pathlib
import time

import jax
import jax.numpy as jnp
from quantization_recipes import (
    CALIBRATION_SHAPE,
    EMBEDDING,
    STATISTICS_BATCH,
    cached,
    stored_logits,
    text_halves,
    write_results,
)

import jaxmem as jm
from jaxmem import models
from jaxmem.models import downloading

LIMITS = (81_000_000, 66_000_000)  # 4.0 and 3.2 bits a weight
SENSITIVITIES = ("role", "fisher")
LEAST_BITS = (2, 3)


def calibrated(codec):
    return jm.GPTQ(jm.Search(codec))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=pathlib.Path, required=True)
    parser.add_argument("--keep", type=pathlib.Path)
    args = parser.parse_args()
    path = pathlib.Path(__file__).with_suffix(".json")
    model = models.rotate(models.load("smollm2-135m"))
    calibration, ids = text_halves(args.text, model)
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    count, length = CALIBRATION_SHAPE
    windows = calibration[: count * length].reshape(-1, STATISTICS_BATCH, length)
    batches = [(window,) for window in windows]
    measure = lambda: (jm.stats(model.apply, model.params, batches),)
    stats = cached(args.keep, "moments all", measure)[0]
    uses = jm.uses(model.apply, model.params, *batches[0])
    fisher_windows = jnp.asarray(calibration[: 4 * 512].reshape(4, 1, 512))
    fisher_batches = [(window,) for window in fisher_windows]
    fisher = jm.fisher(model.apply, model.params, fisher_batches, seed=0)
    diagonals = {p: dataclasses.replace(m, second=m.diag) for p, m in stats.items()}
    measured_ids = {"before": calibration[-4 * 1024 :], "after": ids[: 8 * 1024]}
    dense = {name: stored_logits(model, x, len(x) // 1024) for name, x in measured_ids.items()}
    for least, sensitivity in itertools.product(LEAST_BITS, SENSITIVITIES):
        for limit in LIMITS:
            key = {"limit": limit, "sensitivity": sensitivity, "least_bits": least}
            if any(key.items() <= row.items() for row in rows):
                continue
            codecs = [
                jm.Int(b, group=g, symmetric=False) for b in range(least, 9) for g in (64, 128)
            ]
            options = {"uses": uses, "stats": diagonals, "candidates": codecs}
            options |= {"sensitivity": fisher if sensitivity == "fisher" else None}
            start = time.perf_counter()
            plan = jm.budget(model.params, nbytes=limit, **options)
            seconds = time.perf_counter() - start
            solvers = {
                p: jm.Search(c) if p == EMBEDDING else calibrated(c) for p, c in plan.items()
            }
            encoded = jm.encode(model.params, jm.Plan(solvers), uses=uses, stats=stats)
            tree, kl = jm.decode(encoded), {}
            for name, window_ids in measured_ids.items():
                reference = (dense[name][0], None)
                evaluation = jm.evaluate(model.apply, tree, window_ids, reference=reference)
                kl[name] = vars(evaluation.kl)
            rows.append(
                key
                | {"bytes": jm.nbytes(encoded), "kl": kl}
                | {"seconds_to_plan": round(seconds, 1)}
                | {"plan": {p: f"{c.bits} g{c.group}" for p, c in plan.items()}}
            )
            print(key, {name: interval["mean"] for name, interval in kl.items()}, flush=True)
            facts = {
                "command": f"python experiments/quality/budget_plans.py --text {args.text.name}",
                "jax": jax.__version__,
                "backend": jax.default_backend(),
                "model": model.source,
                "gguf_sha256": hashlib.sha256(
                    downloading.fetch("smollm2-135m").read_bytes()
                ).hexdigest(),
                "seed": 0,
            }
            write_results(path, facts | {"rows": rows})


if __name__ == "__main__":
    main()
