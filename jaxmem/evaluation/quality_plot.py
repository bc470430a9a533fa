"""plot: a picture of quality against bytes."""

import os
from collections.abc import Mapping

from ..core.pictures import Picture, new_figure
from .result import Evaluation


def plot(evaluations: Mapping[str, Evaluation], path: str | os.PathLike | None = None) -> Picture:
    """Draws quality against resident bytes, with a point for each named evaluation.

    The dense model's perplexity, if it was measured, is a dashed line. With `path`, the picture is
    written as a PNG, too.

    Raises:
        ValueError: `evaluations` is empty, or none of them has a measure of quality.
        ImportError: matplotlib is missing.
    """
    measures = ("perplexity", "kl", "spearman", "cosine")
    shown = [m for m in measures if any(getattr(e, m) for e in evaluations.values())]
    if not shown:
        raise ValueError(f"{len(evaluations)} evaluations hold no quality to draw")
    dashed = any(e.dense_perplexity for e in evaluations.values())
    labels = {"kl": "KL(dense ‖ model), nats"}
    labels |= {"perplexity": "perplexity (dashed: dense)"} if dashed else {}
    figure = new_figure(5 * len(shown), 4)
    for axes, measure in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown):
        points = {k: (e, getattr(e, measure)) for k, e in evaluations.items()}
        points = {k: (e, y) for k, (e, y) in points.items() if y}
        for name, (e, y) in points.items():
            axes.plot(e.resident / 1e6, y.mean, "o", color="C0")
            point = (e.resident / 1e6, y.mean)
            axes.annotate(name, point, xytext=(5, 5), textcoords="offset points")
            paired = measure == "perplexity" and e.dense_perplexity
            if paired:  # then the interval is the text's: the dense model's is as wide
                axes.axhline(e.dense_perplexity.mean, color="C1", linestyle="--")
            elif y.low is not None:
                axes.vlines(e.resident / 1e6, y.low, y.high, color="C0", alpha=0.4)
        if measure == "kl" and all(y.mean > 0 for _, y in points.values()):
            axes.set_yscale("log")
        axes.set(xlabel="resident megabytes", ylabel=labels.get(measure, measure))
        axes.set_title(f"{measure} by size")
        axes.margins(0.15)
        axes.grid(alpha=0.3, which="both")
    picture = Picture(figure)
    if path is not None:
        picture.save(path)
    return picture
