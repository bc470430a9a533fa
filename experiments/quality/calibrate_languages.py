"""Gemma-3-270M calibrated on English, on Chinese or on both, at one size: calibrate_languages.json.

    pip install -e ".[demo]"
    python experiments/quality/calibrate_languages.py --data DATA

The matrices of the blocks are in 4.3 bits in all rows, by GPTQ of a weighted search or rounded to
nearest (RTN), the table of words is in 8 bits. English is of WikiText-2's validation text and of
SST-2's reviews, Chinese of FewCLUE's headlines (tnews) and reviews (eprstmt). The first half of
each calibrates, windows of the second half measure: the mean KL divergence from the dense model's
next token, in nats. A language's KL is the mean of its two texts. "both" has half as many windows
of each language, by turns. Answers are of reviews of eprstmt, with the share that changed. Gemma
cannot be rotated, and its weights were once stored in 4 to 6 bits in groups of 32. A row that is in
the file is not measured again. A picture stands beside the JSON.
"""

import argparse
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

import jaxmem as jm
from jaxmem.core.pictures import new_figure
from jaxmem.evaluation import answer_flips, published_tasks, score_task
from jaxmem.evaluation.confidence import Estimate

BLOCKS, TABLE, LENGTH, BATCH = "layers.*/kernel", "embed.*/embedding", 256, 2
CALIBRATING, MEASURED, ITEMS = 12, 3, 16  # windows in all, and of each text; answers
LANGUAGES = {"en": ("wikitext2", "sst2"), "zh": ("tnews", "eprstmt")}
CODEC = jm.Int(4, group=64, symmetric=False)
ROWS = {"RTN": (), "en": ("en",), "zh": ("zh",), "both": ("en", "zh")}


def texts_of(data: pathlib.Path) -> dict[str, tuple[str, str]]:
    """{name: (the half that calibrates, the half that measures)}."""
    read = lambda name: (data / name).read_text(encoding="utf-8")
    sentences = lambda name: [json.loads(x)["sentence"] for x in read(name).splitlines()]
    lines = {"wikitext2": read("wikitext2_valid.txt").splitlines(keepends=False)}
    lines["sst2"] = [line.rsplit("\t", 1)[0] for line in read("sst2_train.tsv").splitlines()]
    lines |= {name: sentences(f"zh/{name}.json") for name in LANGUAGES["zh"]}
    halves = lambda x: ("\n".join(x[: len(x) // 2]), "\n".join(x[len(x) // 2 :]))
    return {name: halves(few) for name, few in lines.items()}


def windows(model: jm.models.Model, text: str, count: int) -> np.ndarray:
    """Token ids (count, LENGTH) from even distances of a text; each begins as a text does."""
    ids = model.tokenizer.encode(text[:400_000], add_special_tokens=False).ids
    starts = np.linspace(0, len(ids) - LENGTH, count, dtype=int)
    return np.array([[model.config.bos, *ids[i : i + LENGTH - 1]] for i in starts], np.int32)


def picture(rows: dict, path: pathlib.Path) -> None:
    """Two bars for each row: the KL of English and of Chinese."""
    axes = (figure := new_figure(6, 4)).subplots()
    for shift, language in ((-0.2, "en"), (0.2, "zh")):
        heights = [rows[name][f"kl_{language}"] for name in sorted(rows)]
        axes.bar(np.arange(len(rows)) + shift, heights, 0.4, label=language)
    axes.set_xticks(range(len(rows)), sorted(rows), rotation=30, ha="right")
    axes.set(ylabel="KL, nats a token", yscale="log", title="Gemma-3-270M")
    axes.legend()
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=pathlib.Path, required=True)
    args = parser.parse_args()
    model, texts = jm.models.load("gemma-3-270m"), texts_of(args.data)
    uses = jm.uses(model.apply, model.params, jax.ShapeDtypeStruct((1, 8), jnp.int32))
    task = published_tasks(args.data)["eprstmt"].sample(ITEMS)
    measured = {name: windows(model, held, MEASURED) for name, (_, held) in texts.items()}

    logprobs = jax.jit(lambda params, row: jax.nn.log_softmax(model.apply(params, row)))
    before = {name: [np.asarray(logprobs(model.params, row[None])) for row in rows]
              for name, rows in measured.items()}  # fmt: skip

    @jax.jit
    def divergence(params, row, dense) -> jax.Array:
        """The mean KL of a window (1, LENGTH) from what the dense model said of it, in nats."""
        return (jnp.exp(dense) * (dense - logprobs(params, row))).sum(-1).mean()

    def losses(params) -> dict:
        """What the JSON says of the KL of each text and language."""
        found = {
            name: [float(divergence(params, *pair)) for pair in zip(rows[:, None], before[name])]
            for name, rows in measured.items()
        }
        row = {"kl": {name: vars(Estimate.of(few, 0.0)) for name, few in found.items()}}
        for language, few in LANGUAGES.items():
            row[f"kl_{language}"] = float(np.mean([found[name] for name in few]))
        return row | {"zh_over_en": row["kl_zh"] / row["kl_en"]}

    def calibration(languages: tuple[str, ...]) -> list[tuple]:
        names = [name for language in languages for name in LANGUAGES[language]]
        parts = [windows(model, texts[name][0], CALIBRATING // len(names)) for name in names]
        rows = np.stack(parts, axis=1).reshape(-1, BATCH, LENGTH)
        return [(jnp.asarray(few),) for few in rows]

    path = pathlib.Path(__file__).with_suffix(".json")
    results = {"command": "python experiments/quality/calibrate_languages.py --data DATA"}
    results |= {"jax": jax.__version__, "backend": jax.default_backend(), "seed": None}
    results |= {"model": model.source, "calibrated_on_tokens": CALIBRATING * LENGTH}
    results |= {"measured_tokens_of_each": MEASURED * LENGTH, "rows": {}}
    results |= {"rows": json.loads(path.read_text("utf-8"))["rows"]} if path.exists() else {}
    dense = score_task(task, model)
    results |= {"answers": ITEMS, "dense": {"accuracy": dense.mean}}
    for name, languages in ROWS.items():
        if name in results["rows"]:
            continue
        codec = jm.GPTQ(jm.Search(CODEC), turns=4) if languages else CODEC
        plan = jm.choose(model.params, {BLOCKS: codec, TABLE: jm.Int(8)})
        stats = None
        if languages:
            stats = jm.stats(model.apply, model.params, calibration(languages))
        encoded = jm.encode(model.params, plan, uses=uses, stats=stats)
        params, row = jax.jit(jm.decode)(encoded), {"bytes": jm.nbytes(encoded)}
        row |= losses(params)
        asked = score_task(task, model, params=params)
        row["accuracy"] = asked.mean
        row["changed"] = answer_flips(dense.items, asked.items).changed
        results["rows"][name] = row
        print(name, json.dumps(row), flush=True)
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    picture(results["rows"], path.with_suffix(".png"))


if __name__ == "__main__":
    main()
