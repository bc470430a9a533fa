"""eval: how well a model predicts a text, and how far it strays from another."""

import dataclasses
import json
from typing import Annotated

from tyro.conf import arg

from ..evaluation.perplexity_kl import evaluate
from ..evaluation.result import Evaluation
from ..models import Model, load
from ..models.example_inputs import window
from . import options
from .output import Output


@dataclasses.dataclass(frozen=True)
class Eval:
    """Perplexity of a model on a text; with --reference also KL and agreement with that model."""

    model: options.ModelName
    _: dataclasses.KW_ONLY
    text: Annotated[str, arg(metavar="FILE")]
    """UTF-8 text to predict."""
    windows: options.Count = None
    """Windows of 1,024 tokens to read, from the start; all of them unless given."""
    reference: Annotated[str | None, arg(metavar="MODEL")] = None
    """A dense model to compare with."""
    json: options.Json = False

    def run(self, output: Output) -> dict:
        """The figures, which `output` shows as a table."""
        text = options.read(self.text)
        model = load(self.model)
        reference = None if self.reference is None else load(self.reference)
        found = measure(output, model, text, windows=self.windows, reference=reference)
        output.say(found)
        return {"source": model.source} | as_data(found)


def measure(
    output: Output,
    model: Model,
    text: str,
    *,
    windows: int | None = None,
    reference: Model | None = None,
    what: str = "evaluating",
) -> Evaluation:
    """Evaluates a model on windows of a text, paired with the dense `reference`."""
    ids = options.tokens(model, text, windows)
    pair = None if reference is None else (reference.apply, options.weights(reference))
    with output.counting(what) as progress:
        return evaluate(
            model.apply,
            options.weights(model),
            ids,
            reference=pair,
            window=window(model),
            windows=windows,
            progress=progress,
        )


def as_data(evaluation: Evaluation) -> dict:
    """The evaluation as plain data."""
    return json.loads(evaluation.to_json())
