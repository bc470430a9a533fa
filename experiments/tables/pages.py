"""Fills the tables of a page, each between its marks, with rows made from the experiments' JSON.

This module is imported, not run.
"""

import json
import pathlib
from collections.abc import Callable, Iterable

EXPERIMENTS = pathlib.Path(__file__).parents[1]
DOCS = EXPERIMENTS.parent / "docs"
END = "<!-- end -->"


def read(name: str) -> dict:
    """The data of the JSON file `name`, which an experiment wrote beside itself."""
    (path,) = EXPERIMENTS.glob(f"*/{name}")
    return json.loads(path.read_text(encoding="utf-8"))


def fill(name: str, script: str, tables: dict[Callable[[], Iterable[str]], str]) -> None:
    """Writes the tables of the page docs/`name`; `tables` is {function that yields rows: titles}.

    A table stands between "<!-- FUNCTION: written by experiments/tables/`script` -->" and
    "<!-- end -->".
    """
    page = (DOCS / name).read_text(encoding="utf-8")
    for table_rows, titles in tables.items():
        start = f"<!-- {table_rows.__name__}: written by experiments/tables/{script} -->\n"
        before, after = page.split(start)
        separator = "|".join(["---"] * (titles.count("|") + 1))
        table = f"| {titles} |\n|{separator}|\n" + "".join(f"| {row} |\n" for row in table_rows())
        page = before + start + table + END + after.split(END, 1)[1]
    (DOCS / name).write_text(page, encoding="utf-8")
