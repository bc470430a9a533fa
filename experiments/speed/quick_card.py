"""What the quick suite of a card costs, in a fresh process: writes quick_card.json.

    pip install -e ".[demo]"
    python experiments/speed/quick_card.py --data DATA --text wikitext2_valid.txt

The model is smollm2-135m, rotated, with its block linears in 4.3 bits; the card measures it, the
dense model and the noise floor on what DATA and the second half of TEXT give. Nothing is kept from
earlier runs, no compiled program either. CPU seconds are those of all threads, so they do not
depend on other work on the machine, and on two cores the suite takes about half of them.
"""

import argparse
import json
import os
import pathlib
import time

import jax

import jaxmem as jm

BLOCKS, CODEC = "layers/.*/kernel", jm.Int(4, group=64, symmetric=False)
COMPILED = "/jax/core/compile/backend_compile_duration"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--text", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, help="keeps the items, and begins with none")
    args = parser.parse_args()
    text = args.text.read_text(encoding="utf-8")
    programs = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: programs.append(seconds) if event == COMPILED else None
    )
    dense = jm.models.rotate(jm.models.load("smollm2-135m"))
    params = jm.encode(dense.params, jm.choose(dense.params, {BLOCKS: CODEC}))
    model = jm.models.Model(dense.config, params, dense.tokenizer, f"{dense.source}, 4.3 bits")
    jax.block_until_ready(model.params)
    programs.clear()
    steps: dict[str, dict] = {}
    last = [time.process_time(), 0]
    start, cpu = time.perf_counter(), time.process_time()

    def tell(what: str, done: int, parts: int) -> None:
        if done < parts:
            return
        now = time.process_time()
        steps[what] = {"cpu_seconds": round(now - last[0], 1), "programs": len(programs) - last[1]}
        last[:] = now, len(programs)
        print(what, steps[what], flush=True)

    if args.out is not None and args.out.exists():
        raise ValueError(f"{args.out} exists, expected a new folder")
    options = {"data": args.data, "text": text[len(text) // 2 :], "out": args.out}
    card = jm.card(model, dense, progress=tell, **options)
    results = {
        "command": "python experiments/speed/quick_card.py --data DATA --text TEXT",
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "cores": len(os.sched_getaffinity(0)),
        "seed": 0,
        "model": dense.source,
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "programs": len(programs),
        "seconds_of_compilation": round(sum(programs), 1),
        "steps_up_to": steps,
        "columns": {name: sorted(row) for name, row in card.rows.items()},
    }
    path = pathlib.Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({k: v for k, v in results.items() if k != "columns"}, indent=1))


if __name__ == "__main__":
    main()
