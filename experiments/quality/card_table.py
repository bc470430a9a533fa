"""Cards of SmolLM2 and MiniLM at several sizes, item by item: writes card_table.json.

    pip install -e ".[demo,eval]"
    python experiments/quality/card_table.py --data DATA --text wikitext2_valid.txt --keep DIR

DATA is a folder with the files of published sets. The first half of TEXT calibrates SmolLM2, the
second half measures it; MiniLM is calibrated on training sentences of STS-B and SST-2. Quantization
starts from the rotated SmolLM2, pruning from the model as it is. DIR keeps statistics, encoded
weights and the items of the cards, which two cards can be compared by. Rows of "flips" have the
answers that changed in 64 items of each task and in all 1,508 pairs of CrowS-Pairs, rows of "full"
are of the full suite. `--rows` picks rows by a regex of their names; a row that is in the file is
not measured again. Seconds are those of the model's own row; the first row of a file has those of
the dense model, too.
"""

import argparse
import csv
import dataclasses
import functools
import json
import pathlib
import re
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np

import jaxmem as jm
from jaxmem.evaluation import answer_flips, published_tasks, score_task

COMMAND = "python experiments/quality/card_table.py"
BLOCKS = "layers/.*/kernel"
WINDOWS, LENGTH, BATCH = 24, 512, 4  # that calibrate SmolLM2
TOKENS = (8, 12, 16, 20, 24)  # sentences of so many tokens calibrate MiniLM, without padding
best = lambda codec: jm.GPTQ(jm.Search(codec), turns=4)
INTEGERS = {
    "8": jm.Int(8, symmetric=False),
    "6": jm.Int(6, group=64, symmetric=False),
    "4.5": jm.Int(4, group=32),
    "4.3": jm.Int(4, group=64, symmetric=False),
    "3.3": jm.Int(3, group=64, symmetric=False),
}
QUANTIZED = {f"{bits} bits RTN": codec for bits, codec in INTEGERS.items()}
QUANTIZED |= {f"{bits} bits GPTQ": best(codec) for bits, codec in INTEGERS.items()}
PRUNED = {
    "50 %": jm.Refit(jm.SparseGPT(jm.Bitmask(0.5))),
    "2:4": jm.Refit(jm.SparseGPT(jm.NM(2, 4))),
}
NARROW = "20 % narrower"
NEURONS = {"smollm2-135m": 1017, "minilm-l6": 1075}  # left: a fifth of all parameters, or of the
# parameters of MiniLM's blocks, is removed
FLIPS = ("4.3 bits RTN", "4.3 bits GPTQ")
FLIP_TASKS = {name: 64 for name in ("arc_easy", "piqa", "sst2", "winobias", "winobias_type2")}
FLIP_TASKS["crows_pairs"] = 1508
FULL = ("8 bits RTN", "4.5 bits GPTQ", "3.3 bits GPTQ", "2:4")


class Table:
    """One model's rows, and what they are calibrated with."""

    def __init__(self, name: str, args: argparse.Namespace):
        self.name, self.args, self.plain = name, args, jm.models.load(name)
        text = args.text.read_text(encoding="utf-8")
        self.text, self.held_out = text[: len(text) // 2], text[len(text) // 2 :]

    @functools.cached_property
    def rotated(self) -> jm.models.Model:
        return jm.models.rotate(self.plain)

    def dense(self, rotated: bool) -> jm.models.Model:
        return self.rotated if rotated else self.plain

    @functools.cached_property
    def batches(self) -> list[tuple]:
        if self.name == "smollm2-135m":
            ids = self.plain.tokenizer.encode(self.text, add_special_tokens=False).ids
            rows = np.asarray(ids[: WINDOWS * LENGTH], np.int32).reshape(-1, BATCH, LENGTH)
            return [(jnp.asarray(row),) for row in rows]
        pairs = csv.reader((self.args.data / "stsb_en_train.csv").read_text("utf-8").splitlines())
        sentences = [sentence for a, b, _ in pairs for sentence in (a, b)]
        lines = (self.args.data / "sst2_train.tsv").read_text("utf-8").splitlines()
        sentences = [sentences, [line.rsplit("\t", 1)[0] for line in lines]]
        self.plain.tokenizer.no_truncation()
        self.plain.tokenizer.no_padding()
        rows = []
        for texts in sentences:
            ids = [encoding.ids for encoding in self.plain.tokenizer.encode_batch(texts)]
            rows += [np.array([i for i in ids if len(i) == n][:128], np.int32) for n in TOKENS]
        return [(jnp.asarray(ids), jnp.ones(ids.shape, bool)) for ids in rows]

    def stats(self, rotated: bool) -> dict:
        path = self.args.keep / f"{self.name} {'rotated' * rotated}.jm"
        if not path.exists():
            model = self.dense(rotated)
            found = jm.stats(model.apply, model.params, self.batches)
            jm.save(path, {name: m for name, m in found.items() if re.fullmatch(BLOCKS, name)})
        return jm.load(path)

    def made(self, row: str, rotated: bool) -> jm.models.Model:
        """The compressed model of a row."""
        model = self.dense(rotated)
        if row == NARROW:
            return jm.remove_neurons(model, NEURONS[self.name], self.stats(rotated))
        path = self.args.keep / f"{self.name} {row.replace(':', '-')}.jm"
        if not path.exists():
            codec = (QUANTIZED | PRUNED)[row]
            stats = None if "RTN" in row else self.stats(rotated)
            uses = jm.uses(model.apply, model.params, *self.batches[0])
            plan = jm.choose(model.params, {BLOCKS: codec})
            jm.save(path, jm.encode(model.params, plan, uses=uses, stats=stats))
        source = f"{model.source}, {row}"
        return dataclasses.replace(model, tensors=jm.load(path), source=source)

    def flips(self, row: str) -> dict:
        """What changed in the answers of each task; the items of each model and task are kept."""
        published = published_tasks(self.args.data)
        found = {}
        for task, count in FLIP_TASKS.items():
            scores = []
            for which in ("dense", row):
                path = self.args.keep / f"{self.name} {which} {task}.json"
                if not path.exists():
                    model = self.rotated if which == "dense" else self.made(row, True)
                    params = jax.jit(jm.decode)(model.params)
                    asked = score_task(published[task].sample(count), self.rotated, params=params)
                    path.write_text(json.dumps(asked.items), encoding="utf-8")
                    print(which, task, asked.mean, flush=True)
                scores.append(json.loads(path.read_text(encoding="utf-8")))
            found[task] = dataclasses.asdict(answer_flips(*scores))
        few = [found[task] for task, count in FLIP_TASKS.items() if count == 64]
        return found | {
            "changed_of_all_but_crows_pairs": float(np.mean([x["changed"] for x in few]))
        }

    def row(self, row: str) -> tuple[dict, dict]:
        """(A row of the JSON, those of the dense model, which are measured once)."""
        if row.endswith(" flips"):
            return self.flips(row.removesuffix(" flips")), {}
        full, name = row.endswith(" full"), row.removesuffix(" full")
        rotated = self.name == "smollm2-135m" and name in QUANTIZED
        folder = self.args.keep / "cards" / self.name
        dense = "dense" + " rotated" * rotated + " full" * full
        if (folder / dense).is_dir():
            shutil.copytree(folder / dense, folder / row / "items", dirs_exist_ok=True)
        start = time.perf_counter()
        model = self.made(name, rotated)
        jax.block_until_ready(model.params)
        made = time.perf_counter() - start
        options = {"data": self.args.data, "suite": "full" if full else "quick"}
        options["text"] = self.held_out
        start, cpu = time.perf_counter(), time.process_time()

        def tell(what: str, done: int, parts: int) -> None:
            if done == parts:
                print(f"{time.perf_counter() - start:7.1f} s", what, flush=True)

        card = jm.card(model, self.dense(rotated), out=folder / row, progress=tell, **options)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        card.save(folder / row)
        for part in ("dense", "dense_in_bfloat16"):
            shutil.copytree(
                folder / row / "items" / part, folder / dense / part, dirs_exist_ok=True
            )
        encoded = jax.tree.leaves(model.params, is_leaf=jm.is_encoded)
        encoded = [x for x in encoded if jm.is_encoded(x)]
        bits = 8 * jm.nbytes(encoded) / max(1, sum(x.size for x in encoded))
        rows = json.loads(card.to_json())["rows"]
        found = {"bits_per_weight": bits or None, "dense": dense}
        found |= {"seconds_to_make": round(made, 1), "seconds_of_card": round(seconds, 1)}
        found["cpu_seconds_of_card"] = round(cpu, 1)
        return found | rows.pop("model"), {dense: rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--text", type=pathlib.Path, required=True)
    parser.add_argument("--keep", type=pathlib.Path, required=True)
    parser.add_argument("--rows", default=".*", help="a regex of a model's and a row's name")
    args = parser.parse_args()
    path = pathlib.Path(__file__).with_suffix(".json")
    results = {
        "command": f"{COMMAND} --data DATA --text {args.text.name} --keep DIR",
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "seed": None,
        "models": {},
    }
    if path.exists():
        results |= {"models": json.loads(path.read_text(encoding="utf-8"))["models"]}
    for name in NEURONS:
        rows = [*QUANTIZED, *PRUNED, NARROW]
        more = {"smollm2-135m": (FLIPS, "flips"), "minilm-l6": (FULL, "full")}
        rows += [f"{row} {kind}" for few, kind in [more[name]] for row in few]
        table = None
        for row in rows:
            there = results["models"].get(name, {}).get("rows", {})
            if row in there or not re.fullmatch(args.rows, f"{name} {row}"):
                continue
            print(name, row, flush=True)
            table = table or Table(name, args)
            entry = results["models"].setdefault(name, {"dense": {}, "rows": {}})
            found, dense = table.row(row)
            entry["source"] = table.plain.source  # with the file's sha256
            entry["rows"][row] = found
            entry["dense"] |= dense
            staged = path.with_suffix(".tmp")
            staged.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            staged.replace(path)


if __name__ == "__main__":
    main()
