"""eval: how well a model predicts a text, and how far its predictions are from another model's."""

import dataclasses
import json
from typing import Annotated

from tyro.conf import arg

from ..evaluation.perplexity_kl import evaluate
from ..evaluation.result import Evaluation
from ..models import Model, load
from ..models.example_inputs import window
from ..models.text_models import reads_source
from . import options
from .output import Output


@dataclasses.dataclass(frozen=True)
class Eval(options.SourceOptions):
    """Perplexity of a model on a text; with --reference also KL and agreement with that model."""

    _: dataclasses.KW_ONLY
    text: Annotated[str, arg(metavar="FILE")]
    """UTF-8 text to predict."""
    windows: options.Count = None
    """Windows of 1,024 tokens to read, from the start; all of them unless given."""
    reference: Annotated[str | None, arg(metavar="MODEL")] = None
    """A dense model to compare with."""

    def run(self, output: Output) -> dict:
        """Evaluates, shows the figures on `output` as a table, and returns them as plain data."""
        text = options.read(self.text)
        model = self.load()
        reference = None if self.reference is None else load(self.reference, dtype=self.dtype)
        evaluation = measure(output, model, text, windows=self.windows, reference=reference)
        output.say(evaluation)
        return {"source": model.source} | as_data(evaluation)


def measure(
    output: Output,
    model: Model,
    text: str,
    *,
    windows: int | None = None,
    reference: Model | None = None,
    what: str = "evaluating",
) -> Evaluation:
    """Evaluates a model on windows of a text, token by token beside the dense `reference`.

    Args:
        output: where progress is shown.
        model: the model, dense or encoded.
        text: what it predicts.
        windows: windows of 1,024 tokens to read from the start; None reads all.
        reference: a dense model; with it KL and agreement are measured.
        what: the name of the work in the progress bar.

    Raises:
        ValueError: an encoder-decoder without a reference: its encoder reads the tokens that it
            would predict, so that only the distance from another one's predictions says something.
    """
    if reads_source(model) and reference is None:
        raise ValueError(
            f"{model.source} is an encoder-decoder, which has no perplexity of a text that it has "
            "read; compare it with a dense model, by --reference"
        )
    ids = options.tokens(model, text, windows)
    pair = None if reference is None else (reference.apply, options.weights(reference))
    with output.counting(what) as progress:
        result = evaluate(
            model.apply,
            options.weights(model),
            ids,
            reference=pair,
            window=window(model),
            windows=windows,
            progress=progress,
        )
    if reads_source(model):
        return dataclasses.replace(result, perplexity=None, dense_perplexity=None)
    return result


def as_data(evaluation: Evaluation) -> dict:
    """The evaluation as plain data."""
    return json.loads(evaluation.to_json())
