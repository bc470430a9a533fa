"""Recipe: everything that decides what a step takes, as plain data with a JSON form."""

import dataclasses
import json
from typing import Any, Self

from ..compression.plan import Plan
from ..train.remat_policy import Remat

TASKS = ("train", "lora", "serve")
STATES = ("float32", "bfloat16", "int8")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that decides what a step takes; JSON that `build` turns into the step.

    Args:
        model: what `models.load` takes.
        device: what `memory` takes; its chips share the batch, the weights and the cache.
        task: train (all weights, in bfloat16), lora (pairs beside frozen weights) or serve.
        batch, seq: rows of a step, and tokens of a row (of the cache, to serve).
        encoding: the codec of kernels and embeddings; None for bfloat16. Not to train.
        cache_bits: of keys and values, 16 (bfloat16), 8, 4 or 2.
        state: "float32", "bfloat16" or "int8", of the optimizer.
        remat: what the backward pass keeps.
        offload: whether the optimizer's state lies in host memory, and passes layer by layer.
        micro: micro-batches, one in memory at a time.
        chunk: positions whose logits exist at a time.
        rank: of the adapters of lora.
        prompt: tokens of the prompts read at a time, to serve.
        shared: whether several chips share the weights; else each has them whole, and they share
            the batch and the optimizer's state.

    Raises:
        ValueError: values that do not go together.

    Example:
        >>> import jaxmem as jm
        >>> recipe = Recipe("llama-8b", "tpu v5e:1x1", "serve", 16, 4096, encoding=jm.Int(4))
        >>> Recipe.from_json(recipe.to_json()) == recipe
        True
    """

    model: str
    device: str
    task: str
    batch: int
    seq: int
    encoding: Any = None
    cache_bits: int = 16
    state: str = "float32"
    remat: Remat = Remat("full")  # noqa: RUF009  it is frozen
    offload: bool = False
    micro: int = 1
    chunk: int = 512
    rank: int = 16
    prompt: int = 64
    shared: bool = True

    def __post_init__(self):
        if self.task not in TASKS:
            raise ValueError(f"unknown task {self.task!r}; expected one of {', '.join(TASKS)}")
        for name in ("batch", "seq", "micro", "chunk", "rank", "prompt"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.batch % self.micro:
            raise ValueError(f"{self.micro} micro-batches of a batch of {self.batch}")
        if self.state not in STATES:
            raise ValueError(f"state is {self.state!r}, expected one of {', '.join(STATES)}")
        if self.task == "train" and self.encoding is not None:
            raise ValueError(f"training moves every weight, and {self.encoding} cannot move: lora?")

    def to_json(self) -> str:
        """The recipe as JSON text."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        fields["encoding"] = self.encoding and json.loads(Plan({"": self.encoding}).to_json())[""]
        return json.dumps(fields | {"remat": dataclasses.asdict(self.remat)}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The recipe that `to_json` wrote.

        Raises:
            ValueError: not such a text.
        """
        try:
            data = json.loads(text)
            if data["encoding"]:
                codec = Plan.from_json(json.dumps({"": data["encoding"]}))[""]
                data["encoding"] = codec
            return cls(**data | {"remat": Remat(**data["remat"])})
        except (json.JSONDecodeError, KeyError, TypeError) as e:
            raise ValueError(f"not the JSON text of a Recipe: {e}") from e
