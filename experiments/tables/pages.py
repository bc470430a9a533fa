"""fill: the tables of a page, each between its marks, as a script makes them from JSON."""

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
    """Writes the page docs/`name` anew; `tables` holds {what gives the rows: their titles}.

    A table stands between "<!-- rows: written by experiments/tables/`script` -->", with the name
    of the function that gives its rows, and "<!-- end -->".
    """
    page = (DOCS / name).read_text(encoding="utf-8")
    for rows, heads in tables.items():
        start = f"<!-- {rows.__name__}: written by experiments/tables/{script} -->\n"
        before, rest = page.split(start)
        rule = "|".join(["---"] * (heads.count("|") + 1))
        table = f"| {heads} |\n|{rule}|\n" + "".join(f"| {row} |\n" for row in rows())
        page = before + start + table + END + rest.split(END, 1)[1]
    (DOCS / name).write_text(page, encoding="utf-8")
