"""Writes the table of docs/adapters.md from peft_kinds.json.

python experiments/tables/adapters_table.py
"""

from pages import fill, read


def peft_kinds():
    for kind, row in read("peft_kinds.json")["largest_differences"].items():
        ours, theirs = row.get("ours in PEFT", row), row.get("PEFT's here", {})
        numbers = [x.get(dtype) for dtype in ("float64", "float32") for x in (ours, theirs)]
        yield " | ".join([kind, *("" if x is None else f"{x:.1e}" for x in numbers)])


if __name__ == "__main__":
    titles = "adapter | ours in PEFT, float64 | PEFT's here, float64"
    titles += " | ours in PEFT, float32 | PEFT's here, float32"
    fill("adapters.md", "adapters_table.py", {peft_kinds: titles})
