"""Writes the tables of docs/scaling.md from the experiments' JSON.

python experiments/tables/scaling_table.py
"""

import math

from pages import fill, read

MODELS = {"train": "llama-8b, train", "serve": "llama-70b in int4, serve"}


def rows_of(name):
    return read(name)["rows"]


def compiled():
    rows = rows_of("scaling.json")
    peak = lambda r: f"{r['peak'] / 2**30:.2f} GiB" + ("" if r["fits"] else ", does not fit")
    order = {name: place for place, name in enumerate(MODELS)}
    chip_count = lambda device: math.prod(map(int, device.partition(":")[2].split("x")))
    named = [name.split(", ") for name in rows]
    for *parts, constraint in sorted(named, key=lambda n: (order[n[0]], chip_count(n[1]))):
        if constraint == "constrained":
            task, device, axes = parts
            head = ", ".join(parts)
            unconstrained_row = rows.get(f"{head}, not constrained")
            unconstrained = "" if unconstrained_row is None else peak(unconstrained_row)
            constrained = peak(rows[f"{head}, constrained"])
            yield f"{MODELS[task]} | {device} | {axes} | {constrained} | {unconstrained}"


def smollm2():
    for r in rows_of("sharded_smollm2.json"):
        sizes = f"{r['argument_bytes_a_device']:,} | {r['argument_ratio']:.3f}"
        ids = "×".join(map(str, r["ids"]))
        error = f"{r['relative_error']:.1e} | {r['gathers_of_a_stack']}"
        yield f"{r['codec']} | {r['mesh']} | {ids} | {sizes} | {error}"


def pipeline():
    rows = rows_of("pipeline.json")
    fewest = {r["schedule"]: r for r in reversed(sorted(rows, key=lambda r: r["micro_batches"]))}
    more = lambda r, key: r[key] - fewest[r["schedule"]][key]
    for r in sorted(rows, key=lambda r: (r["schedule"], r["micro_batches"])):
        bubble = f"{r['bubble']:.3f} ({r['bubble_formula']:.3f})"
        stack = f"{r['stack_bytes_a_stage']:,} ({r['stack_bytes_formula']:,})"
        extra = f"{more(r, 'temp_bytes_a_stage'):,} ({more(r, 'bytes_held_formula'):,})"
        error = max(r["forward_error"], r["loss_and_gradient_error"])
        sizes = f"{stack} | {r['temp_bytes_a_stage']:,} | {extra}"
        yield f"{r['schedule']} | {r['micro_batches']} | {bubble} | {sizes} | {error:.1e}"


def processes():
    for r in rows_of("processes.json"):
        before, after = r["processes"]
        meshes = (" × ".join(f"{k} {v}" for k, v in mesh.items()) for mesh in r["meshes"])
        file_is_whole = "yes" if r["old_file_whole_after_kill"] else "no"
        difference = f"{r['largest_relative_difference_of_losses']:.1e}"
        yield f"{before}, then {after} | {', then '.join(meshes)} | {file_is_whole} | {difference}"


TABLES = {
    compiled: "model | chips | mesh | a device | without constraints",
    smollm2: "codec | mesh | ids | arguments a device | of total ÷ devices | "
    "relative error of logits | gathers of a stack",
    pipeline: "schedule | micro-batches | bubble (formula) | bytes of layers a stage (formula) | "
    "temp a stage | more than with the fewest (formula) | relative error",
    processes: "processes | mesh | the file whole after the kill | difference of losses",
}


if __name__ == "__main__":
    fill("scaling.md", "scaling_table.py", TABLES)
