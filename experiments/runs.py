"""One codec a stack against one for each run of its layers, at equal bytes: writes runs.json.

    pip install -e ".[demo]"
    python experiments/runs.py --text wikitext2_valid.txt

smollm2-135m, rotated; every plan is of `budget`, its ranges searched without data. The first half
of TEXT gives the sensitivities (`fisher`, on 2 windows of 512 tokens), the second half measures. A
row that is in the file already is not measured again.
"""

import argparse
import hashlib
import json
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

import jaxmem as jm
from jaxmem import models
from jaxmem.models import fetching

LIMITS = (102_000_000, 81_000_000)  # about 5 and 4 bits a weight
RUNS = (1, 5, 30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=pathlib.Path, required=True)
    parser.add_argument("--windows", type=int, default=4)
    args = parser.parse_args()
    path = pathlib.Path(__file__).with_suffix(".json")
    model = models.rotate(models.load("smollm2-135m"))
    text = args.text.read_text(encoding="utf-8")
    encode = lambda t: np.asarray(model.tokenizer.encode(t, add_special_tokens=False).ids)
    calibration, ids = encode(text[: len(text) // 2]), encode(text[len(text) // 2 :])
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    windows = jnp.asarray(calibration[: 2 * 512].reshape(2, 1, 512))
    uses = jm.uses(model.apply, model.params, windows[0])
    curved = jm.fisher(model.apply, model.params, [(w,) for w in windows], seed=0)
    for limit in LIMITS:
        for how, sensitivity in (("fisher", curved), ("by role", None)):
            for runs in RUNS:
                key = {"limit": limit, "sensitivity": how, "runs": runs}
                if any(key.items() <= row.items() for row in rows):
                    continue
                start = time.perf_counter()
                given = dict(nbytes=limit, uses=uses, sensitivity=sensitivity, runs=runs)
                plan = jm.budget(model.params, **given)
                seconds = time.perf_counter() - start
                searched = jm.Plan({p: jm.Search(codec) for p, codec in plan.items()})
                small = jm.encode(model.params, searched, uses=uses)
                against = dict(reference=(model.apply, model.params), windows=args.windows)
                result = jm.evaluate(model.apply, jm.decode(small), ids, **against)
                row = key | {
                    "bytes": jm.nbytes(small),
                    "entries": len(plan),
                    "seconds_to_plan": round(seconds, 1),
                    "perplexity": result.perplexity.mean,
                    "kl": result.kl.mean,
                }
                rows.append(row)
                print(row, flush=True)
                found = {
                    "command": f"python experiments/runs.py --text {args.text.name}",
                    "jax": jax.__version__,
                    "backend": jax.default_backend(),
                    "model": model.source,
                    "gguf_sha256": hashlib.sha256(
                        fetching.fetch("smollm2-135m").read_bytes()
                    ).hexdigest(),
                    "seed": 0,
                    "windows": args.windows,
                    "rows": rows,
                }
                path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
