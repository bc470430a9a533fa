"""`fit --among`, one budget over all techniques, against integers alone: writes fit_among.json.

    pip install -e ".[demo]"
    python experiments/quality/fit_among.py --text wikitext2_valid.txt [--tune 64]

The model is smollm2-135m, not rotated, as pruning needs it. The first half of TEXT calibrates, the
second half measures. A row is encoded as by `jaxmem fit --calibrate`; `seconds` are those of each
stage that it reports. A row that is in the file already is not measured again.
"""

import argparse
import collections
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import re
import time

import jax
import jax.numpy as jnp
import numpy as np

import jaxmem as jm
from jaxmem import models
from jaxmem.models import downloading

LIMITS = (62_000_000,)
FORMATS = ("int", "sparsity", "n:m", "rank")
TECHNIQUE_SETS = (("int",), FORMATS, (*FORMATS, "neurons", "layers"))
SEED = 0  # of the windows that tuning draws


@dataclasses.dataclass
class Seconds:
    """A `progress` of `jm.fit`: the seconds from each stage's first report to its last."""

    started: dict = dataclasses.field(default_factory=dict)
    by_stage: dict = dataclasses.field(default_factory=dict)

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage not in self.started:
            print(stage, flush=True)
        start = self.started.setdefault(stage, time.perf_counter())
        self.by_stage[stage] = time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=pathlib.Path, required=True)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--tune", type=int, default=64, help="steps")
    parser.add_argument("--rows", default=".*", help="a regex of limit and techniques")
    args = parser.parse_args()
    path = pathlib.Path(__file__).with_suffix(".json")
    model = models.load("smollm2-135m")
    text = args.text.read_text(encoding="utf-8")
    calibration, measured_text = text[: len(text) // 2], text[len(text) // 2 :]
    tokenized = lambda text: np.asarray(model.tokenizer.encode(text, add_special_tokens=False).ids)
    calibration_ids, ids = tokenized(calibration), tokenized(measured_text)
    results = {
        "command": f"python experiments/quality/fit_among.py --text {args.text.name}"
        f" --windows {args.windows} --tune {args.tune}",
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "cores": len(os.sched_getaffinity(0)),
        "model": model.source,
        "gguf_sha256": hashlib.sha256(downloading.fetch("smollm2-135m").read_bytes()).hexdigest(),
        "seed": SEED,
        "rows": json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else [],
    }

    def save() -> None:
        staged = path.with_suffix(".tmp")
        staged.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        staged.replace(path)

    @functools.cache
    def dense_logits() -> dict:
        """The dense model's logits of each window, computed once."""
        text = jnp.asarray(ids[: args.windows * 1024].reshape(-1, 1024))
        dense = jax.jit(model.apply)
        return {"ids": text, "logits": jnp.stack([dense(model.params, w[None])[0] for w in text])}

    def look_up(table: dict, window: jax.Array) -> jax.Array:
        return table["logits"][(table["ids"] == window).all(-1).argmax()][None]

    for limit in LIMITS:
        for among in TECHNIQUE_SETS:
            key = {"limit_bytes": limit, "among": list(among), "tune": args.tune}
            key |= {"windows": args.windows}
            is_measured = any(key.items() <= row.items() for row in results["rows"])
            if is_measured or not re.fullmatch(args.rows, f"{limit} {' '.join(among)}"):
                continue
            fit_settings, seconds = jm.FitOptions(among=among, tune_steps=args.tune), Seconds()
            fit_options = {"calibrate": calibration_ids, "options": fit_settings}
            fitted = jm.fit(model, limit, **fit_options, progress=seconds)
            options = {"reference": (look_up, dense_logits()), "windows": args.windows}
            dense = jm.decode(fitted.params)
            evaluation = json.loads(
                jm.evaluate(fitted.model.apply, dense, ids, **options).to_json()
            )
            score_keys = ("tokens", "perplexity", "dense_perplexity", "kl", "agreement")
            row = key | {"seconds": seconds.by_stage, "bytes": fitted.nbytes, "done": fitted.done}
            row |= {name: evaluation[name] for name in score_keys}
            row |= {"model": fitted.model.source, "plan": json.loads(fitted.plan.to_json())}
            results["rows"].append(row)
            save()
            counts = collections.Counter(type(codec).__name__ for codec in fitted.plan.values())
            total = sum(seconds.by_stage.values())
            print(limit, *among, row["model"], dict(counts), row["bytes"], f"{total:.0f} s")
            print(row["kl"]["mean"], row["perplexity"]["mean"], flush=True)
    save()


if __name__ == "__main__":
    main()
