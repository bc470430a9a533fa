"""Answers, summaries and a chat of SmolLM2 in fewer bytes, beside the dense one's own texts.

    pip install -e ".[demo]"
    python experiments/quality/card_table.py --data DATA --text TEXT --keep DIR --rows "smol.*RTN"
    python experiments/quality/summaries_chat.py --data DATA --models DIR

Writes summaries_chat.json, and a picture beside it. DIR has the encoded weights of the first
command. The model answers by its chat template, and takes the most probable token at each step.
Summaries are of DialogSum's dialogues, answers of ARC-Easy's questions, the chat is about PIQA's
goals. `rouge_l` and `f1` compare a text with the one that people wrote, `to_dense` with the dense
model's. `agreed` is the mean number of tokens before the first one that is not the dense model's,
of `tokens` at most, `same` the share of texts that are its whole. "rotated" is the dense model's
function with other roundings. A row that is in the file, or not in DIR, is left out.
"""

import argparse
import collections
import dataclasses
import json
import pathlib
import re

import jax
import numpy as np

import jaxmem as jm
from jaxmem.core.pictures import new_figure
from jaxmem.evaluation import published_tasks
from jaxmem.evaluation.text_overlap import text_score
from jaxmem.models.chat_messages import chat_prompt

DENSE, PRUNED, BATCH = ("dense", "rotated"), ("50 %", "2:4"), 8
QUANTIZED = ("8 bits RTN", "4.5 bits RTN", "4.5 bits GPTQ", "3.3 bits RTN", "3.3 bits GPTQ")
NAMES = (*DENSE, *QUANTIZED, *PRUNED)
ASKED = {  # name: (set, field of the text, what is asked, metric, texts, longest prompt, tokens)
    "summaries": ("dialogsum", "dialogue", "Summarize this dialogue in one sentence.\n\n{}",
                  "rouge_l", 8, 224, 32),
    "answers": ("arc_easy", "question", "Answer in a few words. {}", "f1", 16, 96, 12),
    "chat": ("piqa", "question", "{}", None, 16, 64, 40),
}  # fmt: skip


@dataclasses.dataclass
class Texts:
    """What is asked of one kind: prompts in batches of one length, and what people wrote."""

    prompts: list[np.ndarray]  # (BATCH, tokens) each
    answers: list[str]
    metric: str | None
    tokens: int


def asked(model: jm.models.Model, data: pathlib.Path) -> dict[str, Texts]:
    """The prompts by name; of a length at which the set has enough of them, the commonest first."""
    tasks, found = published_tasks(data), {}
    for name, (task, field, ask, metric, count, longest, tokens) in ASKED.items():
        by_length, frame = collections.defaultdict(list), chat_prompt(model, ask)
        for item in tasks[task].items:
            text = frame.replace("{}", item[field])  # the template, rendered once
            ids = model.tokenizer.encode(text, add_special_tokens=False).ids
            if len(ids) <= longest:
                right = item["answer"]
                right = item["choices"][right] if "choices" in item else right
                by_length[len(ids)].append((ids, right))
        batches = sorted(by_length.values(), key=len, reverse=True)[: -(-count // BATCH)]
        batches = [batch[:BATCH] for batch in batches]
        answers = [answer for batch in batches for _, answer in batch]
        prompts = [np.stack([ids for ids, _ in batch]) for batch in batches]
        found[name] = Texts(prompts, answers, metric, tokens)
    return found


def written(model: jm.models.Model, texts: Texts) -> list[tuple[str, str]]:
    """(token ids up to the end of the text, the text) of each prompt."""
    found, ends = [], set(model.config.eos)
    for batch in texts.prompts:
        made = jm.models.generate(model, batch, max_new_tokens=texts.tokens)
        for ids, text in zip(made.ids.tolist(), made.texts):
            end = next((i + 1 for i, x in enumerate(ids) if x in ends), len(ids))
            found.append((" ".join(map(str, ids[:end])), text.strip()))
    return found


def agreed(ids: str, dense: str) -> int:
    """The number of tokens before the first one that differs."""
    pairs = list(zip(ids.split(), dense.split()))
    return next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))


def compared(found: list, dense: list, texts: Texts) -> dict:
    """What the JSON says of the texts of one kind."""
    metric, words = texts.metric or "rouge_l", [text for _, text in found]
    row = {"texts": len(found), "metric": metric, "tokens": texts.tokens}
    if texts.metric:
        row[metric] = np.mean([text_score(metric, a, [b]) for a, b in zip(words, texts.answers)])
    row["to_dense"] = np.mean([text_score(metric, a, [b]) for a, (_, b) in zip(words, dense)])
    pairs = [(a, b) for (a, _), (b, _) in zip(found, dense)]
    row["agreed"] = np.mean([agreed(a, b) for a, b in pairs])
    row["dense_tokens"] = np.mean([len(b.split()) for _, b in pairs])
    return row | {"same": np.mean([a == b for a, b in pairs]), "first": words[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--models", type=pathlib.Path, required=True)
    parser.add_argument("--rows", default=".*", help="a regex of the rows' names")
    args = parser.parse_args()
    plain = jm.models.load("smollm2-135m")
    texts = asked(plain, args.data)
    path = pathlib.Path(__file__).with_suffix(".json")
    results = json.loads(path.read_text("utf-8")) if path.exists() else {"rows": {}}
    results["command"] = "python experiments/quality/summaries_chat.py --data DATA --models DIR"
    results |= {"jax": jax.__version__, "backend": jax.default_backend(), "seed": None}
    results["model"] = plain.source
    if "texts" not in results:
        results["texts"] = {name: written(plain, few) for name, few in texts.items()}
    for name in NAMES:
        weights = args.models / f"smollm2-135m {name.replace(':', '-')}.jm"
        left_out = name in results["rows"] or not re.fullmatch(args.rows, name)
        if left_out or not (name in DENSE or weights.exists()):
            continue
        basis = plain if name in ("dense", *PRUNED) else jm.models.rotate(plain)
        params, bits = basis.params, None
        if name not in DENSE:
            encoded = jm.load(weights)
            blocks = list(filter(jm.is_encoded, jax.tree.leaves(encoded, is_leaf=jm.is_encoded)))
            bits = 8 * jm.nbytes(blocks) / sum(x.size for x in blocks)
            params = jax.jit(jm.decode)(encoded)
        model, row = dataclasses.replace(basis, tensors=params), {"bits_per_weight": bits}
        for kind, few in texts.items():
            found = results["texts"][kind] if name == "dense" else written(model, few)
            row[kind] = compared(found, results["texts"][kind], few)
        rows = results["rows"] | {name: row}
        results["rows"] = {name: rows[name] for name in NAMES if name in rows}
        print(name, json.dumps(row, ensure_ascii=False), flush=True)
        path.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", "utf-8")
    rows = {name: row for name, row in results["rows"].items() if name != "dense"}
    axes = (figure := new_figure(6, 4)).subplots()
    for kind in texts:
        shares = [row[kind]["agreed"] / row[kind]["dense_tokens"] for row in rows.values()]
        axes.plot(shares, "o-", label=kind)
    axes.set_xticks(range(len(rows)), list(rows), rotation=30, ha="right")
    axes.set(ylabel="tokens before the first other one, of all", title="SmolLM2-135M")
    axes.legend()
    figure.savefig(path.with_suffix(".png"), dpi=100)


if __name__ == "__main__":
    main()
