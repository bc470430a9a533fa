"""Pictures of what the words of one text are worth to an answer, before and after compression."""

import html
from collections.abc import Mapping, Sequence

import numpy as np

from ..core.pictures import Picture, new_figure


def attribution_html(
    words: Sequence[str], worth: Mapping[str, Sequence[float]], title: str = ""
) -> str:
    """A page with the text once for each row of `worth`, {name: (words,)}.

    A word that speaks for the answer has a green ground, one against it a red one, the stronger the
    more it is worth in its row.

    Example:
        >>> "rgba(0, 128, 0, 1.00)" in attribution_html(["fine", "film"], {"dense": [2.0, -1.0]})
        True
    """
    rows = []
    for name, numbers in worth.items():
        shares = _shares(numbers)
        spans = [
            f'<span style="background: {_ground(share)}" title="{number:.3f}">'
            f"{html.escape(word)}</span>"
            for word, number, share in zip(words, numbers, shares, strict=True)
        ]
        rows.append(f"<tr><th>{html.escape(name)}</th><td>{' '.join(spans)}</td></tr>")
    head = f'<!doctype html>\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n'
    return f"{head}<h1>{html.escape(title)}</h1>\n<table>\n" + "\n".join(rows) + "\n</table>\n"


def attribution_plot(
    words: Sequence[str], worth: Mapping[str, Sequence[float]], title: str = ""
) -> Picture:
    """Bars of each word's worth in nats, one colour for each row of `worth`.

    Raises:
        ImportError: matplotlib is missing.
    """
    figure = new_figure(7, 1.5 + 0.3 * len(words))
    axes = figure.subplots()
    height = 0.8 / len(worth)
    for i, (name, numbers) in enumerate(worth.items()):
        at = np.arange(len(words)) + height * (i - (len(worth) - 1) / 2)
        axes.barh(at, np.asarray(numbers), height, label=name)
    axes.set_yticks(range(len(words)), [word.replace("$", r"\$") for word in words])
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.5)
    axes.set(xlabel="nats", title=title)
    axes.legend()
    return Picture(figure)


def _shares(numbers: Sequence[float]) -> np.ndarray:
    """The numbers over the largest of them, from -1 to 1."""
    numbers = np.asarray(numbers, np.float64)
    return numbers / max(np.abs(numbers).max(initial=0), 1e-30)


def _ground(share: float) -> str:
    green, red = (0, 128, 0), (200, 0, 0)
    r, g, b = green if share >= 0 else red
    return f"rgba({r}, {g}, {b}, {abs(share):.2f})"
