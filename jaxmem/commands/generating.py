"""generate: a prompt continued, token by token."""

import dataclasses
from typing import Annotated

from tyro.conf import arg

from ..models import generate, load
from .options import Count, Json, ModelName
from .output import Output
from .spreading import MeshOption, spread_model, told


@dataclasses.dataclass(frozen=True)
class Generate:
    """Continues a prompt and shows the text as it comes."""

    model: ModelName
    _: dataclasses.KW_ONLY
    prompt: Annotated[str, arg(metavar="TEXT")]
    """What to continue."""
    max_new_tokens: int = 64
    """Stop after so many tokens, if the model has not."""
    temperature: float = 0.0
    """0 takes the likeliest token; above, one is drawn."""
    top_k: Count = None
    """Draw among this many likeliest tokens."""
    top_p: Annotated[float | None, arg(metavar="P")] = None
    """Draw among the fewest tokens that have this probability together."""
    seed: int = 0
    """The same seed draws the same tokens."""
    mesh: MeshOption = None
    json: Json = False

    def run(self, output: Output) -> dict:
        """The text and its tokens, which `output` shows as they come."""
        model, places = spread_model(load(self.model), self.mesh)
        if places:
            output.say(told(places))
        output.say(self.prompt, end="")
        found = generate(
            model,
            self.prompt,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            seed=self.seed,
            stream=lambda text: output.say(text, end=""),
        )
        output.say("")
        return {
            "source": model.source,
            "prompt": self.prompt,
            "text": found.text,
            "ids": found.ids[0].tolist(),
            "first_token_seconds": found.first_token_seconds,
            "seconds_per_token": found.seconds_per_token,
            **places,
        }
