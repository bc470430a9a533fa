"""Plans of `budget` against uniform rounding at no fewer bytes: writes fit_smollm2.json.

    pip install -e ".[demo]"
    python experiments/quality/fit_smollm2.py --text wikitext2_valid.txt

The model is smollm2-135m, rotated. The first half of TEXT calibrates the rows named so, the second
half measures. Rows of `fit --calibrate` are encoded as by that command, and their seconds are all
that it took. A row that is in the file already is not measured again.
"""

import argparse
import functools
import hashlib
import json
import pathlib
import re
import time

import jax
import jax.numpy as jnp
import numpy as np

import jaxmem as jm
from jaxmem import models
from jaxmem.models import downloading
from jaxmem.models.model import Model

COMMAND = "python experiments/quality/fit_smollm2.py"
LIMITS = (163_000_000, 122_000_000, 102_000_000)  # 8, 6 and 5 bits for each of 162.9M weights
MOST_OF_LIMIT = 1.015  # a uniform plan may take up to this many times the limit
CALIBRATION = (2, 512)  # windows, tokens
SEED = 0


def uniform_plans(model: Model, uses: dict, limit: int) -> dict[str, jm.Plan]:
    """Every round-to-nearest plan of one codec that takes `limit` bytes, or slightly more."""
    shapes = jax.eval_shape(lambda p: p, model.params)
    plans = {}
    for bits in range(3, 9):
        for group in (None, 32, 64, 128, 256):
            for symmetric in (False, True):
                codec = jm.Int(bits, group=group, symmetric=symmetric)
                plan = jm.choose(shapes, {".*/(kernel|embedding)": codec})
                size = jm.nbytes(jm.encode(shapes, plan, uses=uses))
                if limit <= size <= limit * MOST_OF_LIMIT:
                    plans[f"uniform {codec}"] = plan
    return plans


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=pathlib.Path, required=True)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--rows", default=".*", help="a regex of limit and name")
    args = parser.parse_args()
    path = pathlib.Path(__file__).with_suffix(".json")
    model = models.rotate(models.load("smollm2-135m"))
    text = args.text.read_text(encoding="utf-8")
    encode = lambda t: np.asarray(model.tokenizer.encode(t, add_special_tokens=False).ids)
    calibration, ids = encode(text[: len(text) // 2]), encode(text[len(text) // 2 :])
    results = {
        "command": f"{COMMAND} --text {args.text.name} --windows {args.windows}",
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "model": model.source,
        "gguf_sha256": hashlib.sha256(downloading.fetch("smollm2-135m").read_bytes()).hexdigest(),
        "seed": SEED,
        "windows": args.windows,
        "rows": json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else [],
    }

    uses = jm.uses(model.apply, model.tensors, jax.ShapeDtypeStruct((1, 8), jnp.int32))
    count, length = CALIBRATION
    batches = [(row,) for row in calibration[: count * length].reshape(count, 1, length)]
    fisher = functools.cache(lambda: jm.fisher(model.apply, model.params, batches, seed=SEED))
    sensitivities = {"weights only": lambda: None, "calibrated": fisher}

    @functools.cache
    def dense_logits() -> dict:
        """The dense model's logits of each window, computed once."""
        text = jnp.asarray(ids[: args.windows * 1024].reshape(-1, 1024))
        dense = jax.jit(model.apply)
        return {"ids": text, "logits": jnp.stack([dense(model.params, w[None])[0] for w in text])}

    def look_up(table: dict, window: jax.Array) -> jax.Array:
        return table["logits"][(table["ids"] == window).all(-1).argmax()][None]

    def add(limit: int, name: str, plan_or_fit) -> None:
        key = {"limit_bytes": limit, "plan": name, "windows": args.windows}
        is_measured = any(key.items() <= row.items() for row in results["rows"])
        if is_measured or not re.fullmatch(args.rows, f"{limit} {name}"):
            return
        start = time.perf_counter()
        fitted = plan_or_fit()
        seconds = time.perf_counter() - start
        if isinstance(fitted, jm.Plan):
            fitted = jm.Fitted(model, fitted, jm.encode(model.params, fitted, uses=uses), None, {})
        options = {"reference": (look_up, dense_logits()), "windows": args.windows}
        evaluation = jm.evaluate(model.apply, jm.decode(fitted.params), ids, **options)
        weights = sum(x.size for x in jax.tree.leaves(model.params))
        score_keys = ("tokens", "perplexity", "dense_perplexity", "kl", "agreement")
        scores = json.loads(evaluation.to_json())
        results["rows"].append(
            key
            | {"bytes": fitted.nbytes, "bits_per_weight": 8 * fitted.nbytes / weights}
            | {name: scores[name] for name in score_keys}
            | {"seconds_to_plan": round(seconds, 1), "codecs": str(fitted.plan).splitlines()}
            | ({"calibration": fitted.done} if fitted.done else {})
        )
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        print(limit, name, fitted.nbytes, evaluation.kl, evaluation.perplexity, flush=True)

    def planned(limit: int, name: str) -> jm.Plan:
        sensitivity = sensitivities[name]()
        plan = jm.budget(model.tensors, nbytes=limit, uses=uses, sensitivity=sensitivity)
        return jm.Plan({path: jm.Search(codec) for path, codec in plan.items()})  # as `fit` does

    for steps in (0, 64):
        for limit in LIMITS[::-1]:
            options = {"calibrate": calibration, "options": jm.FitOptions(tune_steps=steps)}
            fit = functools.partial(jm.fit, model, limit, **options)
            add(limit, f"fit --calibrate --tune {steps}", fit)
    for name in sensitivities:
        for limit in LIMITS:
            add(limit, name, lambda limit=limit, name=name: planned(limit, name))
            if name == "weights only":
                codec, plan = next(iter(uniform_plans(model, uses, limit).items()))
                add(limit, codec, lambda plan=plan: plan)
    for limit in LIMITS:
        for codec, plan in uniform_plans(model, uses, limit).items():
            add(limit, codec, lambda plan=plan: plan)


if __name__ == "__main__":
    main()
