"""generate: a prompt continued or answered, token by token; or a file of them, all at once."""

import contextlib
import dataclasses
import sys
from typing import Annotated, Literal

from tyro.conf import arg

from ..kv_cache.page_pool import Pages
from ..models import KVCache, Model, chat, generate
from ..models.chat_messages import template_process_started
from ..models.generation import Generation
from .mesh_option import MeshOption, mesh_line, spread_model
from .options import Count, SourceOptions, TextFile
from .output import Output
from .sizes import Size


@dataclasses.dataclass(frozen=True)
class Generate(SourceOptions):
    """Answers a prompt, if the model has a chat template, or else continues it."""

    _: dataclasses.KW_ONLY
    prompt: Annotated[str | None, arg(metavar="TEXT")] = None
    """What to answer or to continue. With --chat and without it, each line of the input is a
    message of one conversation."""
    chat: bool = False
    """Answer by the model's chat template; refuse a model without one."""
    raw: bool = False
    """Continue the prompt as it is, whether or not the model has a chat template."""
    system: Annotated[str | None, arg(metavar="TEXT")] = None
    """What the model is told before the conversation."""
    max_new_tokens: int = 64
    """Stop after this many tokens, unless the model ended the text before."""
    temperature: float = 0.0
    """0 takes the most probable token; a higher temperature draws a token."""
    top_k: Count = None
    """Draw among this many most probable tokens."""
    top_p: Annotated[float | None, arg(metavar="P")] = None
    """Draw among the fewest tokens whose probabilities add up to this."""
    min_p: Annotated[float | None, arg(metavar="P")] = None
    """Draw among the tokens at least this many times as probable as the most probable one."""
    seed: int = 0
    """The same seed draws the same tokens."""
    cache_bits: Literal[8, 4, 2] | None = None
    """Bits of each number in the cache of keys and values; floats unless given."""
    cache_rotated: bool = False
    """With --cache-bits: rotate heads by a Hadamard matrix first, which spreads outliers."""
    mesh: MeshOption = None
    prompts: TextFile = None
    """Answer each line of a file of JSON lines, many at a time: {"prompt": "Hello"}, with fields
    such as "id", "messages", "max_new_tokens", "seed" and "stop". Wants --memory and --out."""
    memory: Size | None = None
    """With --prompts: the most bytes of weights and of keys and values together, such as 2GB."""
    out: TextFile = None
    """With --prompts: the file of answers, in the order of the prompts. Run the same line again
    after an interruption: what is answered is not answered again."""
    rows: int = 16
    """With --prompts: the most prompts that are answered at the same time."""

    def run(self, output: Output) -> dict:
        """The text and its tokens, which `output` shows as they come."""
        self._check()
        if self.prompts is not None:
            return self._answer_file(output)
        with contextlib.nullcontext() if self.raw else template_process_started():
            return self._answer(output)

    def _answer(self, output: Output) -> dict:
        """Answers or continues the prompt."""
        model, places = spread_model(self.load(), self.mesh)
        if places:
            output.say(mesh_line(places))
        if not self.raw and (self.chat or self.system is not None or model.chat_template):
            found = self._chat(model, output)
        else:
            generated = self._generate(generate, model, self.prompt, output, shown=self.prompt)
            found = {"prompt": self.prompt, **_fields(generated)}
        return {"source": model.source, **found, **places}

    def _check(self) -> None:
        """Refuses options that do not go together."""
        if self.cache_rotated and self.cache_bits is None:
            raise ValueError("--cache-rotated turns a cache of --cache-bits, which is not given")
        if self.raw and (self.chat or self.system is not None):
            raise ValueError("--raw goes without --chat and --system, which take a chat template")
        if self.prompts is not None:
            others = {"--prompt": self.prompt, "--mesh": self.mesh}
            if wrong := [name for name, value in others.items() if value is not None]:
                raise ValueError(f"--prompts goes without {wrong[0]}")
            if self.memory is None or self.out is None:
                raise ValueError("--prompts wants --memory SIZE and --out FILE")
        elif self.memory is not None or self.out is not None:
            raise ValueError("--memory and --out go with --prompts FILE, which is not given")
        elif self.prompt is None and not self.chat:
            raise ValueError("--prompt is not given; only --chat reads messages from the input")

    def _answer_file(self, output: Output) -> dict:
        """Answers the prompts of a file."""
        from .prompt_batch import PromptBatch  # and so the engine, which one prompt does not take

        model = self.load()
        if (self.chat or self.system is not None) and model.chat_template is None:
            raise ValueError(f"{model.source} has no chat template, which --chat and --system take")
        names = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "seed")
        batch = PromptBatch(
            prompts=self.prompts,
            out=self.out,
            memory=self.memory,
            rows=self.rows,
            pages=Pages(self.cache_bits, rotate=self.cache_rotated),
            system=self.system,
            as_chat=not self.raw and model.chat_template is not None,
            defaults={name: getattr(self, name) for name in names},
        )
        return {"source": model.source, **batch.run(model, output)}

    def _chat(self, model: Model, output: Output) -> dict:
        """Answers the prompt, or each line of the input until its end."""
        lines = sys.stdin if self.prompt is None else [self.prompt]
        messages = [] if self.system is None else [{"role": "system", "content": self.system}]
        found: dict = {}
        for line in lines:
            messages.append({"role": "user", "content": line.rstrip("\n")})
            generated = self._generate(chat, model, messages, output)
            messages.append({"role": "assistant", "content": generated.text})
            found = _fields(generated)
        if not found:
            raise ValueError("the input has no line, expected a message in each")
        return {"prompt": messages[-2]["content"], "messages": messages, **found}

    def _generate(
        self, run, model: Model, prompt: str | list, output: Output, shown: str = ""
    ) -> Generation:
        """`run` with the options of the command; shows the text as it comes, after `shown`.

        An error before the first token leaves nothing on the output.
        """
        bits, rotate = self.cache_bits, self.cache_rotated
        parts = [shown]  # of the text, not shown yet

        def stream(text: str) -> None:
            output.say("".join((*parts, text)), end="")
            parts.clear()

        generated = run(
            model,
            prompt,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            seed=self.seed,
            cache=None if bits is None else KVCache(bits, rotate=rotate),
            stream=stream,
        )
        output.say("".join(parts))
        return generated


def _fields(generated: Generation) -> dict:
    """What the JSON of the command has of a generation."""
    return {
        "text": generated.text,
        "ids": generated.ids[0].tolist(),
        "first_token_seconds": generated.first_token_seconds,
        "seconds_per_token": generated.seconds_per_token,
    }
