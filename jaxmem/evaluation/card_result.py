"""Card: the result of `jm.card`: JSON, a table, a model card in Markdown, a picture."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from ..core.pictures import Picture, html_table, new_figure
from ..io.atomic import replacing
from .attribution_picture import attribution_html, attribution_plot
from .confidence import Estimate

DENSE, FLOOR, MODEL = "dense", "dense in bfloat16", "model"


@dataclasses.dataclass(frozen=True)
class Card:
    """`rows` has {row: {column: {name: value}}}, with the rows "dense", "dense in bfloat16", "model".

    Sizes are in bytes, losses in nats, shares from 0 to 1. `origin` says what was measured, and
    `llama_cpp` is the block that llama.cpp's `--kl-divergence` prints, of the model. `explained` has
    the words of one text and what they are worth to its answer, in the rows "dense" and "model".
    """  # noqa: E501

    origin: Mapping[str, Any]
    rows: Mapping[str, Mapping[str, Mapping[str, Any]]]
    llama_cpp: str = ""
    explained: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def to_json(self) -> str:
        """Plain JSON; an interval is an object with `mean`, `low` and `high`."""
        plain = lambda x: dataclasses.asdict(x) if dataclasses.is_dataclass(x) else str(x)
        return json.dumps(dataclasses.asdict(self), indent=1, default=plain, ensure_ascii=False)

    def scalars(self, row: str = MODEL) -> dict[str, float]:
        """The numbers of a row by path, such as "tasks/piqa/changed", which a writer takes.

        Of an interval it is the mean.
        """
        found = {}
        for path in _paths(self.rows[row]):
            value = _at(self.rows[row], path)
            value = value.mean if isinstance(value, Estimate) else value
            if isinstance(value, int | float) and not isinstance(value, bool):
                found["/".join(path)] = float(value)
        return found

    def table(self) -> tuple[list[str], list[list[str]]]:
        """(heads, rows): one line for each number, one column for each row of the card."""
        names = list(self.rows)
        lines: dict[tuple[str, ...], None] = {}
        for row in self.rows.values():
            lines |= dict.fromkeys(_paths(row))
        cells = lambda path: [_text(_at(self.rows[name], path)) for name in names]
        return ["", *names], [[" ".join(path), *cells(path)] for path in lines]

    def __str__(self) -> str:
        heads, rows = self.table()
        widths = [max(map(len, column)) for column in zip(heads, *rows)]
        line = lambda cells: "  ".join(f"{cell:<{w}}" for cell, w in zip(cells, widths)).rstrip()
        return "\n".join(map(line, [heads, *rows]))

    def _repr_html_(self) -> str:
        return html_table(*self.table())

    def markdown(self) -> str:
        """A model card in Markdown, as huggingface_hub makes it of its metadata and our table.

        Raises:
            ImportError: huggingface_hub is missing; names the extra.
        """
        try:
            from huggingface_hub import ModelCard, ModelCardData
        except ImportError as error:
            raise ImportError(
                'a model card wants huggingface_hub: pip install "jaxmem[demo]"'
            ) from error
        heads, rows = self.table()
        table = [heads, ["---"] * len(heads), *rows]
        lines = [
            "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table
        ]
        data = ModelCardData(library_name="jaxmem", tags=["jaxmem", "compressed"])
        origin = json.dumps(dict(self.origin), indent=1, ensure_ascii=False)
        parts = [f"---\n{data.to_yaml()}\n---", f"# {self.origin['model']}"]
        parts += ["Each number is of the same items as the dense model's.", "\n".join(lines)]
        parts += [f"```\n{self.llama_cpp}\n```"] if self.llama_cpp else []
        parts += ["## Origin", f"```json\n{origin}\n```"]
        return str(ModelCard("\n\n".join(parts) + "\n"))

    def plot(self) -> Picture:
        """A picture of the answers that changed in each task, beside the noise floor.

        Without tasks it shows the KL divergence by the position in the text's windows.

        Raises:
            ValueError: neither a task was asked nor a text read, as of a model that gives vectors.
            ImportError: matplotlib is missing.
        """
        shown = {name: _changed(self.rows[name]) for name in (FLOOR, MODEL)}
        label = "answers that changed, %"
        if not shown[MODEL]:
            kl = lambda row: row.get("loss", {}).get("kl_by_position", {})
            shown = {name: {at: x.mean for at, x in kl(self.rows[name]).items()} for name in shown}
            label = "KL divergence by position, nats"
        if not shown[MODEL]:
            raise ValueError("no task was asked, whose answers could have changed")
        figure = new_figure(7, 1.5 + 0.5 * len(shown[MODEL]))
        axes = figure.subplots()
        for i, (name, values) in enumerate(shown.items()):
            at = [y + 0.4 * i - 0.2 for y in range(len(values))]
            axes.barh(at, list(values.values()), 0.38, label=name)
        axes.set_yticks(range(len(shown[MODEL])), list(shown[MODEL]))
        axes.invert_yaxis()
        axes.set(xlabel=label, title=str(self.origin["model"]))
        axes.legend()
        return Picture(figure)

    def save(self, folder: str | os.PathLike) -> None:
        """Writes `card.json`, `README.md` and `card.png` into a folder.

        If words were explained, `attribution.html` and `attribution.png` show one text.
        """
        folder = pathlib.Path(folder)
        for name, text in (("card.json", self.to_json()), ("README.md", self.markdown())):
            with replacing(folder / name) as new:
                new.write_text(text, encoding="utf-8")
        if _changed(self.rows[MODEL]) or "loss" in self.rows[MODEL]:
            with replacing(folder / "card.png") as new:
                self.plot().save(new)
        if self.explained:
            one = self.explained
            shown = one["words"], one["worth"], f"{one['task']}, by {one['kind']}"
            with replacing(folder / "attribution.html") as new:
                new.write_text(attribution_html(*shown), encoding="utf-8")
            with replacing(folder / "attribution.png") as new:
                attribution_plot(*shown).save(new)


def _changed(row: Mapping[str, Any]) -> dict[str, float]:
    """{task: the answers that changed, in percent} of a row."""
    columns = {**row.get("tasks", {}), **row.get("robustness", {})}
    return {name: 100 * x["changed"] for name, x in columns.items() if "changed" in x}


def _paths(tree: Mapping[str, Any]) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for name, value in tree.items():
        if isinstance(value, Mapping):
            found += [(name, *rest) for rest in _paths(value)]
        else:
            found.append((name,))
    return found


def _at(tree: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        tree = tree.get(name) if isinstance(tree, Mapping) else None
    return tree


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, Estimate):
        return str(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
