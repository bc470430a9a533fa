"""generate: a prompt continued, token by token."""

import dataclasses
from typing import Annotated, Literal

from tyro.conf import arg

from ..models import KVCache, generate, load
from .mesh_option import MeshOption, mesh_line, spread_model
from .options import Count, Json, ModelName
from .output import Output


@dataclasses.dataclass(frozen=True)
class Generate:
    """Continues a prompt and shows the text as it comes."""

    model: ModelName
    _: dataclasses.KW_ONLY
    prompt: Annotated[str, arg(metavar="TEXT")]
    """What to continue."""
    max_new_tokens: int = 64
    """Stop after this many tokens, unless the model ended the text before."""
    temperature: float = 0.0
    """0 takes the most probable token; a higher temperature draws a token."""
    top_k: Count = None
    """Draw among this many most probable tokens."""
    top_p: Annotated[float | None, arg(metavar="P")] = None
    """Draw among the fewest tokens whose probabilities add up to this."""
    seed: int = 0
    """The same seed draws the same tokens."""
    cache_bits: Literal[8, 4, 2] | None = None
    """Bits of each number in the cache of keys and values; floats unless given."""
    cache_rotated: bool = False
    """With --cache-bits: rotate heads by a Hadamard matrix first, which spreads outliers."""
    mesh: MeshOption = None
    json: Json = False

    def run(self, output: Output) -> dict:
        """The text and its tokens, which `output` shows as they come."""
        if self.cache_rotated and self.cache_bits is None:
            raise ValueError("--cache-rotated turns a cache of --cache-bits, which is not given")
        bits, rotate = self.cache_bits, self.cache_rotated
        cache = None if bits is None else KVCache(bits, rotate=rotate)
        model, places = spread_model(load(self.model), self.mesh)
        if places:
            output.say(mesh_line(places))
        output.say(self.prompt, end="")
        generated = generate(
            model,
            self.prompt,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            seed=self.seed,
            cache=cache,
            stream=lambda text: output.say(text, end=""),
        )
        output.say("")
        return {
            "source": model.source,
            "prompt": self.prompt,
            "text": generated.text,
            "ids": generated.ids[0].tolist(),
            "first_token_seconds": generated.first_token_seconds,
            "seconds_per_token": generated.seconds_per_token,
            **places,
        }
