"""The textbook's headline by `fit` alone: a quarter of the bytes, and what quality and time cost.

    pip install -e ".[demo]"
    python experiments/speed/fit_headline.py DIR --data ../shared/data --parts quality  # minutes
    python experiments/speed/fit_headline.py DIR --data ../shared/data --parts time  # quiet machine

The figures go into fit_headline.json; `saved` is a share of 1. `quality` fits into DIR what is not
there and in the file; `time` measures what lies in DIR. SmolLM2 is rotated first, since its weights
come from 4 bits. Of the text, the first half calibrates the row that reads one, the second half
measures. Times are medians of rounds in which all fits and the dense model take turns.
"""

import argparse
import csv
import dataclasses
import json
import os
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
from this_machine import processor

import jaxmem as jm
from jaxmem.evaluation.embeddings import evaluate_embeddings, sentence_embedder

SEED, TOKENS = 0, 33
PROMPT = "The history of the river begins in"
BATCHES = {"a query": 1, "32 sentences": 32}
FAST = {"rotate": True, "target": "cpu", "speed": 2.5}
FITS = {  # row: (model, its float32 bytes over those of the fit, FitOptions)
    "smollm2": ("smollm2-135m", 4, FAST),
    "smollm2-text": ("smollm2-135m", 4, FAST | {"windows": 4, "tune_steps": 0}),
    "minilm": ("minilm-l6", 4, {"target": "cpu"}),
    "minilm-int8": ("minilm-l6", 4, {"target": "cpu", "activations": "int8"}),
    "minilm-seventh": ("minilm-l6", 7, {"target": "cpu", "activations": "int8"}),
}


def about() -> dict:
    """What figures depend on beside the model."""
    machine = {"cores": len(os.sched_getaffinity(0)), "load_average": os.getloadavg()}
    backend = {"backend": jax.default_backend(), "native": jm.native().instruction_set}
    return {"jax": jax.__version__, "seed": SEED} | backend | machine


def read_pairs(data: pathlib.Path) -> tuple[list, list[float]]:
    rows = list(csv.reader((data / "stsb_en_dev.csv").read_text().splitlines()))
    return [(a, b) for a, b, _ in rows], [float(score) for *_, score in rows]


def text_half(model, data: pathlib.Path, half: int) -> np.ndarray:
    """The tokens of the first or second half of the text."""
    text = (data / "wikitext2_valid.txt").read_text()
    text = text[len(text) // 2 :] if half else text[: len(text) // 2]
    return np.asarray(model.tokenizer.encode(text, add_special_tokens=False).ids)


def harm(dense, fitted, args) -> dict:
    """What a fit lost against the dense model."""
    if hasattr(dense.config, "cache"):
        ids, options = text_half(dense, args.data, 1), {"windows": args.windows}
        options["reference"] = dense.apply, dense.params
        found = jm.evaluate(fitted.model.apply, jm.decode(fitted.params), ids, **options)
        ratio = found.perplexity.mean / found.dense_perplexity.mean
        figures, keys = {"perplexity_ratio": ratio}, ("perplexity", "dense_perplexity", "kl")
    else:
        pairs, embed, given = read_pairs(args.data), sentence_embedder(dense), lambda x, _: x
        vectors = embed(dense.params, [sentence for pair in pairs[0] for sentence in pair])
        before = evaluate_embeddings(given, vectors, *pairs).spearman.mean
        found = evaluate_embeddings(embed, fitted.params, *pairs, reference=(given, vectors))
        figures, keys = {"spearman_lost": before - found.spearman.mean}, ("spearman", "cosine")
    keys = "tokens", *keys  # of an encoder, sentences
    return figures | {key: json.loads(found.to_json())[key] for key in keys}


def quality(args, rows: dict) -> Iterator[None]:
    """Fits what is not there yet, and measures what is lost."""
    for row in args.rows:
        if row in rows and (args.dir / row).exists():
            continue
        name, times_less, options = FITS[row]
        dense = jm.models.load(name)
        size = jm.nbytes(dense.params)
        calibrate = text_half(dense, args.data, 0) if "windows" in options else None
        start = time.perf_counter()
        limits = {"calibrate": calibrate, "options": jm.FitOptions(**options)}
        fitted = jm.fit(dense, size // times_less, **limits)
        seconds = round(time.perf_counter() - start, 1)
        fitted.save(args.dir / row)
        done = {"options": options, "fit_seconds": seconds, "codecs": str(fitted.plan).splitlines()}
        done |= {"dense_bytes": size, "bytes": fitted.nbytes, "saved": 1 - fitted.nbytes / size}
        rows[row] = about() | {"model": dense.source} | done | harm(dense, fitted, args)
        print(row, json.dumps(rows[row], indent=1), flush=True)
        yield


def works(dense, data: pathlib.Path) -> dict[str, Callable]:
    """{what is done: its seconds as a function of a model}."""
    if hasattr(dense.config, "cache"):
        write = lambda model: jm.models.generate(model, PROMPT, max_new_tokens=TOKENS)
        return {"a token": lambda model: write(model).seconds_per_token}
    sentences = [sentence for pair in read_pairs(data)[0] for sentence in pair]

    def seconds(model, embed: Callable, count: int) -> float:
        start = time.perf_counter()
        embed(model.params, sentences[:count])
        return time.perf_counter() - start

    run = lambda count, embed: lambda model: seconds(model, embed, count)
    return {name: run(n, sentence_embedder(dense, batch=n)) for name, n in BATCHES.items()}


def endless(model):
    """The model, in which no token ends a text."""
    if not hasattr(model.config, "eos"):
        return model
    return dataclasses.replace(model, config=dataclasses.replace(model.config, eos=()))


def times(args, rows: dict) -> Iterator[None]:
    """Measures the fits in DIR that have their row, each beside its dense model."""
    there = [row for row in args.rows if row in rows and (args.dir / row).exists()]
    machine = f"jax {jax.__version__}, {processor()}"
    for name in dict.fromkeys(FITS[row][0] for row in there):
        fits = [row for row in there if FITS[row][0] == name]
        models = {row: endless(jm.models.load(args.dir / row)) for row in fits}
        models["dense"] = endless(jm.models.load(name))
        for work, seconds in works(models["dense"], args.data).items():
            found = {row: [] for row in models}
            for _ in range(args.rounds + 1):
                for row, model in models.items():
                    found[row].append(seconds(model))
            middle = {row: statistics.median(x[1:]) for row, x in found.items()}  # 0: compiles
            for row in fits:
                figures = {"dense_seconds": middle["dense"], "seconds": middle[row]}
                figures |= {"saved": 1 - middle[row] / middle["dense"]}
                of_jax = rows[row].setdefault("time", {}).setdefault(machine, {})
                of_jax[work] = about() | figures
                print(row, work, figures, flush=True)
            yield


PARTS = {"quality": quality, "time": times}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dir", type=pathlib.Path)
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rows", nargs="+", choices=FITS, default=list(FITS))
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=60)
    args = parser.parse_args()
    args.dir.mkdir(parents=True, exist_ok=True)
    path = pathlib.Path(__file__).with_suffix(".json")
    read = lambda: json.loads(path.read_text()) if path.exists() else {}
    rows = read()
    for part in args.parts:
        for _ in PARTS[part](args, rows):  # what another process wrote meanwhile stays
            rows |= {row: figures for row, figures in read().items() if row not in args.rows}
            path.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
