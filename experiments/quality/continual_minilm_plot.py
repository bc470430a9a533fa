"""Accuracy and forgetting against bytes, of the rows of continual_minilm.json: its PNG.

python experiments/quality/continual_minilm_plot.py
"""

import json
import pathlib

from jaxmem.core.pictures import new_figure

PATH = pathlib.Path(__file__).with_name("continual_minilm.json")
METHODS = {"replay": "o-", "EWC": "s--", "O-LoRA": "^:"}
TITLES = {"mean_accuracy": "mean accuracy at the end, %", "forgetting": "forgetting, points"}


def main() -> None:
    rows = json.loads(PATH.read_text(encoding="utf-8"))["rows"]
    figure = new_figure(9, 4)
    for axes, (number, title) in zip(figure.subplots(1, 2), TITLES.items()):
        naive = 100 * rows["naive"][number]
        axes.axhline(naive, color="gray", linewidth=1, label="nothing kept")
        for method, style in METHODS.items():
            found = [(r["bytes"], 100 * r[number], n) for n, r in rows.items() if method in n]
            found.sort()
            axes.plot([x[0] for x in found], [x[1] for x in found], style, label=method)
            for size, value, name in found if method != "replay" else ():
                setting = name.removeprefix(method).strip()
                axes.annotate(setting, (size, value), xytext=(4, 4), textcoords="offset points")
        axes.set_xscale("log", base=2)
        axes.set_xticks([2**x for x in (12, 13, 14, 15, 16)], [f"{2**x} KiB" for x in range(2, 7)])
        axes.set(xlabel="kept of earlier tasks", title=title)
        axes.legend(fontsize="small")
    figure.savefig(PATH.with_suffix(".png"), dpi=100)


if __name__ == "__main__":
    main()
