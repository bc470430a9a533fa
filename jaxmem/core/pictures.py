"""Pictures and HTML tables of results, which notebooks show."""

import dataclasses
import html
import io
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class Picture:
    """A drawing that a notebook shows; `figure` is matplotlib's."""

    figure: "Figure"

    def save(self, path: str | os.PathLike) -> None:
        """Writes a PNG."""
        self.figure.savefig(path, format="png", dpi=150)

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.save(file)
        return file.getvalue()


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of so many inches.

    Raises:
        ImportError: matplotlib is missing; the message names the extra.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('plot needs matplotlib: pip install "jaxmem[demo]"') from error
    return Figure(figsize=(width, height), layout="constrained")


def bars(
    names: Sequence[str],
    stacks: dict[str, Sequence[float]],
    *,
    title: str,
    label: str,
    notes: Sequence[str] = (),
) -> Picture:
    """Horizontal bars, one below the other, of parts that add up.

    Args:
        names: of each bar.
        stacks: the length of each bar's part, {name of the part: lengths}.
        title: of the picture.
        label: what the lengths are.
        notes: a text at the end of each bar.
    """
    figure = new_figure(8, 1.2 + 0.28 * len(names))
    axes, at = figure.subplots(), range(len(names))
    ends = [0.0] * len(names)
    for part, lengths in stacks.items():
        axes.barh(at, lengths, 0.7, ends, label=part)
        ends = [end + length for end, length in zip(ends, lengths)]
    for i, note in enumerate(notes):
        axes.annotate(note, (ends[i], i), xytext=(4, -3), textcoords="offset points", fontsize=8)
    axes.set_yticks(at, names)
    axes.invert_yaxis()
    axes.set(title=title, xlabel=label)
    axes.margins(x=0.15 if notes else 0.05)
    if len(stacks) > 1:
        axes.legend()
    return Picture(figure)


def html_table(heads: Sequence[str], rows: Iterable[Sequence[Any]], caption: str = "") -> str:
    """A table in HTML; the first column is aligned left, the others right.

    Example:
        >>> html_table(["path", "bytes"], [("a < b", 3)])
        '<table><tr><th style="text-align:left">path</th><th style="text-align:right">bytes</th></tr><tr><td style="text-align:left">a &lt; b</td><td style="text-align:right">3</td></tr></table>'
    """  # noqa: E501
    side = lambda i: f' style="text-align:{"right" if i else "left"}"'
    line = lambda tag, cells: "".join(
        f"<{tag}{side(i)}>{html.escape(str(cell))}</{tag}>" for i, cell in enumerate(cells)
    )
    lines = [line("th", heads), *(line("td", row) for row in rows)]
    title = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    return f"<table>{title}{''.join(f'<tr>{cells}</tr>' for cells in lines)}</table>"
