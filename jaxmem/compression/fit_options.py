"""FitOptions: what a budget chooses among, and how much work `fit` does."""

import dataclasses
import math
from typing import Literal

from ..core.arguments import NAMES, check_fields
from ..evaluation.task import Task
from .candidates import KINDS
from .fit_file_format import FILE_TARGETS, FileTarget
from .fit_structures import INTEGERS, STRUCTURES, Technique
from .product_forms import PLATFORMS, Platform

Target = Literal[FileTarget, Platform]
TARGETS = (*FILE_TARGETS, *PLATFORMS)
JUDGES = ("choice", "generation")  # kinds of tasks that a text model answers


@dataclasses.dataclass(frozen=True)
class FitOptions:
    """How `fit` compresses.

    Args:
        among: what one budget chooses among: "int" (codes of 2 to 8 bits), "sparsity" and "n:m"
            (with codes for the weights that stay), "rank" (low rank, alone and beside codes); and
            structures to remove, which make a smaller model and need `calibrate`: "neurons",
            "heads", "width", "layers".
        rotate: turn the residual stream first: the same function, its outliers spread. It takes the
            decoders that `jm.models.rotate` takes.
        tune_steps: steps of scale tuning on the dense model's logits, each a backward pass.
        logits: what runs on batches gives logits (..., classes), such as a bare function that
            classifies or an encoder-decoder: bits then go by what an error costs in them, and
            scales are tuned, as for a text.
        target: a file format that holds the result exactly, "gguf" or "compressed-tensors": the
            budget chooses among its forms, and `nbytes` is the size of the whole file. Or what the
            result runs on, "cpu", "tpu" or "gpu": the budget chooses among the integers that are
            multiplied there without writing decoded weights to memory, and leaves kernels of
            convolutions dense.
        judge: the task whose score makes the last choice, between plans that weigh errors
            otherwise or between structures, which are equal in bytes; None: the KL divergence to
            the dense model. It wants `calibrate` of a text, choices or generated texts, and a
            metric of which more is better.
        speed: with a platform as `target`, at most 1 / `speed` of the seconds a token that the
            dense weights take there, as `jm.speeds` predicts; `Fitted.speed` has the prediction.
        activations: "int8": the inputs of products are rounded, too, each token in a range of its
            own (`Dynamic`), and int8 meets the integers of the weights. Prompts, batches and
            encoders run faster; one token alone does not. A table that is looked up as well, such
            as a tied embedding, stays as it is.
        windows: the most windows (of 1,024 tokens, or the model's context) of `calibrate` that are
            read; None reads what each method takes.

    Raises:
        ValueError: `among` names no form for the weights that stay, or an unknown technique;
            `tune_steps` is negative; `windows` is less than 1; `target` is unknown, or given with
            another `among` than ("int",); `speed` is not positive, or given without a platform;
            `judge` wants vectors of texts, or its metric is "wer"; `activations` are something else
            than "int8", or given with a file format, or with another `among` than ("int",).

    Example:
        >>> import jaxmem as jm
        >>> jm.FitOptions(among=("int", "n:m"), tune_steps=0).windows is None
        True
    """

    among: tuple[Technique, ...] = INTEGERS
    rotate: bool = False
    tune_steps: int = 64
    logits: bool = False
    windows: int | None = None
    target: Target | None = None
    judge: Task | None = None
    speed: float | None = None
    activations: Literal["int8"] | None = None

    def __post_init__(self):
        check_fields(self, among=NAMES)
        known = (*KINDS, *STRUCTURES)
        if not set(self.among) <= set(known):
            raise ValueError(f"among is {self.among!r}, expected a tuple of {', '.join(known)}")
        if not set(self.among) & set(KINDS):
            raise ValueError(
                f"among wants a form for the weights that stay ({', '.join(KINDS)}), "
                f"got {self.among}"
            )
        if self.tune_steps < 0:
            raise ValueError(f"tune_steps is {self.tune_steps}, expected at least 0")
        if self.windows is not None and self.windows < 1:
            raise ValueError(f"windows is {self.windows}, expected at least 1")
        if self.speed is not None and not 0 < self.speed < math.inf:
            raise ValueError(f"speed is {self.speed}, expected times the dense weights' speed")
        if self.speed is not None and self.target not in PLATFORMS:
            raise ValueError(
                f"speed is {self.speed} of target {self.target!r}, expected a target of "
                f"{', '.join(PLATFORMS)}"
            )
        if self.target not in (None, *TARGETS):
            raise ValueError(f"target is {self.target!r}, expected {' or '.join(TARGETS)}")
        if self.activations not in (None, "int8"):
            raise ValueError(f"activations are {self.activations!r}, expected int8 or None")
        if self.activations and self.target in FILE_TARGETS:
            raise ValueError(f"activations in int8: a file for {self.target!r} does not say so")
        if self.activations and self.among != INTEGERS:
            raise ValueError(f"activations in int8 meet integers alone, and among is {self.among}")
        judge = self.judge
        if judge is not None and (judge.kind not in JUDGES or judge.metric == "wer"):
            raise ValueError(
                f"judge is the task {judge.name}, a {judge.kind} by {judge.metric}, expected "
                f"{' or '.join(JUDGES)}, and a metric of which more is better"
            )
        if self.target is not None and self.among != INTEGERS:
            forms = "integers" if self.target in PLATFORMS else "the forms of its files"
            raise ValueError(
                f"target {self.target!r} chooses among {forms}, and among is "
                f"{self.among}; leave one of them out"
            )
