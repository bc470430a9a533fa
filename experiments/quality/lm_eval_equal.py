"""JaxmemLM scores as lm-evaluation-harness's own `hf` model does: writes lm_eval_equal.json.

    pip install -e ".[demo,eval]"          # and then, in an environment with torch
    pip install "lm-eval[hf]"
    python experiments/quality/lm_eval_equal.py write FOLDER --data DATA --text wikitext2_valid.txt
    python experiments/quality/lm_eval_equal.py hf FOLDER
    python experiments/quality/lm_eval_equal.py jaxmem FOLDER
    python experiments/quality/lm_eval_equal.py shared FOLDER --data DATA

The first command writes the model (`--model` names it, SmolLM2 unless given) in float32 as a
Hugging Face folder, and 200 short items of each output type: sentences of SST-2 with two choices,
the last words of sentences of TEXT, whole sentences, and four tokens after those of SST-2. The next
two run the harness on them; the second of these compares. FOLDER keeps what each type gave, so that
a run that was stopped goes on. The last one measures the seconds of ARC-Easy's choices with and
without a context that is read once, the second time that each is run, as the first compiles.
"""

import argparse
import functools
import hashlib
import importlib
import importlib.metadata
import json
import pathlib
import re
import time
from collections.abc import Callable

ITEMS, SHARED_ITEMS = 200, 24
PATH = pathlib.Path(__file__).with_suffix(".json")
PROMPT = "Review: {{sentence}}\nSentiment:"
TASKS = {
    "multiple_choice": {
        "doc_to_text": PROMPT,
        "doc_to_choice": ["negative", "positive"],
        "doc_to_target": "label",
        "metric_list": [{"metric": "acc"}],
    },
    "loglikelihood": {
        "doc_to_text": "{{context}}",
        "doc_to_target": " {{word}}",
        "metric_list": [{"metric": "acc"}],
    },
    "loglikelihood_rolling": {
        "doc_to_text": "",
        "doc_to_target": "{{line}}",
        "metric_list": [{"metric": "word_perplexity"}],
    },
    "generate_until": {
        "doc_to_text": PROMPT,
        "doc_to_target": "label",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
}


def write(model: str, folder: pathlib.Path, data: pathlib.Path, text: pathlib.Path) -> None:
    """Writes the model and the items of each output type."""
    import jaxmem as jm

    folder.mkdir(exist_ok=True)
    if not (folder / "model").exists():
        jm.interop.to_hf(jm.models.load(model), folder / "model")
    rows = [x.rsplit("\t", 1) for x in (data / "sst2_dev.tsv").read_text("utf-8").splitlines()]
    reviews = [{"sentence": text, "label": int(label)} for text, label in rows if len(text) < 90]
    parts = [part.strip() for part in re.split(r" \. |\n", text.read_text("utf-8"))]
    lines = [part for part in parts if 40 <= len(part) < 90 and part.split()[-1].isalpha()]
    words = [line.rsplit(" ", 1) for line in lines]
    items = {
        "multiple_choice": reviews,
        "loglikelihood": [{"context": context, "word": word} for context, word in words],
        "loglikelihood_rolling": [{"line": line} for line in lines],
        "generate_until": reviews,
    }
    for name, few in items.items():
        step = len(few) // ITEMS
        kept = [json.dumps(x) + "\n" for x in few[: step * ITEMS : step]]
        (folder / f"{name}.jsonl").write_text("".join(kept), encoding="utf-8")


def harness(make_lm: Callable, folder: pathlib.Path, who: str) -> dict:
    """{output type: its metric, the answers of the model for each item, seconds}.

    FOLDER keeps those of each type, so that a run that was stopped goes on.
    """
    import lm_eval

    found: dict = {}
    make_lm = functools.cache(make_lm)
    for name, fields in TASKS.items():
        kept = folder / f"{who}.{name}.json"
        if kept.exists():
            found[name] = json.loads(kept.read_text(encoding="utf-8"))
            continue
        lm = make_lm()
        files = {"test": str(folder.absolute() / f"{name}.jsonl")}
        config = {"task": name, "output_type": name, "test_split": "test", "dataset_path": "json"}
        config |= {"dataset_kwargs": {"data_files": files}} | fields
        start = time.perf_counter()
        run = lm_eval.simple_evaluate(model=lm, tasks=[config], bootstrap_iters=0, log_samples=True)
        seconds = time.perf_counter() - start
        samples = sorted(run["samples"][name], key=lambda sample: sample["doc_id"])
        scores = {k: v for k, v in run["results"][name].items() if isinstance(v, float)}
        found[name] = {
            "seconds": round(seconds, 1),
            "scores": scores,
            "answers": [sample["filtered_resps"] for sample in samples],
        }
        kept.write_text(json.dumps(found[name]), encoding="utf-8")
        print(name, scores, round(seconds, 1), flush=True)
    return found


def compare(ours: dict, theirs: dict) -> dict:
    """The largest difference of loglikelihoods in nats, or the share of texts that are equal."""
    found = {}
    for name, run in ours.items():
        pairs = list(zip(run["answers"], theirs[name]["answers"], strict=True))
        row = {"items": len(pairs), "ours": run["scores"], "hf": theirs[name]["scores"]}
        row["seconds"] = {"ours": run["seconds"], "hf": theirs[name]["seconds"]}
        if name == "generate_until":
            row["equal_texts"] = sum(a == b for a, b in pairs) / len(pairs)
        else:
            first = lambda x: float(x[0] if isinstance(x, list | tuple) else x)
            gaps = [abs(first(a) - first(b)) for one, two in pairs for a, b in zip(one, two)]
            row |= {"loglikelihoods": len(gaps), "largest_difference": max(gaps)}
        found[name] = row
    return found


def shared(source: str, data: pathlib.Path) -> dict:
    """Seconds of ARC-Easy's choices with and without contexts that are read once."""
    import jaxmem as jm
    from jaxmem.evaluation import published_tasks, score_task
    from jaxmem.models.continuation_scores import ContinuationScorer

    model = jm.models.load(source)
    task = published_tasks(data)["arc_easy"].sample(SHARED_ITEMS)
    found: dict = {"items": SHARED_ITEMS}
    scores = {}
    for name in ("shared", "not_shared"):
        scorer = ContinuationScorer(model)
        scorer._grows = name == "shared"
        for _ in range(2):
            start, cpu = time.perf_counter(), time.process_time()
            scores[name] = score_task(task, model, scorer=scorer)
        found[name] = {"seconds": time.perf_counter() - start}
        found[name]["cpu_seconds"] = time.process_time() - cpu
    flat = [[p for x in scores[name].items for p in x["logprobs"]] for name in scores]
    found["largest_difference"] = max(abs(a - b) for a, b in zip(*flat))
    found["times_faster"] = found["not_shared"]["cpu_seconds"] / found["shared"]["cpu_seconds"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=["write", "hf", "jaxmem", "shared"])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data", type=pathlib.Path)
    parser.add_argument("--text", type=pathlib.Path)
    args = parser.parse_args()
    if args.step == "write":
        return write(args.model, args.folder, args.data, args.text)
    if args.step == "hf":
        from lm_eval.models.huggingface import HFLM

        options = {"dtype": "float32", "device": "cpu", "batch_size": 8}
        lm = lambda: HFLM(pretrained=str(args.folder / "model"), **options)
        found = harness(lm, args.folder, "hf") | {
            "versions": {
                name: importlib.metadata.version(name)
                for name in ("lm_eval", "torch", "transformers")
            }
        }
        (args.folder / "hf.json").write_text(json.dumps(found), encoding="utf-8")
        return None
    import jax

    results = json.loads(PATH.read_text(encoding="utf-8")) if PATH.exists() else {"models": {}}
    results |= {"jax": jax.__version__, "backend": jax.default_backend(), "seed": None}
    entry = results["models"].setdefault(pathlib.Path(args.model).stem, {})
    if args.step == "shared":
        entry["shared"] = shared(args.model, args.data)
    else:
        theirs = json.loads((args.folder / "hf.json").read_text(encoding="utf-8"))
        entry["versions"] = theirs.pop("versions")
        lm = importlib.import_module("jaxmem.interop.lm_eval").JaxmemLM
        ours = harness(lambda: lm(args.model), args.folder, "jaxmem")
        entry["types"] = compare(json.loads(json.dumps(ours)), theirs)
        path = pathlib.Path(args.model)
        digest = path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest()
        source = importlib.import_module("jaxmem").models.load(args.model).source
        entry["source"] = f"{path.name}, sha256 {digest}" if digest else source
    PATH.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(entry, indent=1))


if __name__ == "__main__":
    main()
