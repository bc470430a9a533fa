"""JaxmemLM: our models in lm-evaluation-harness, without torch (Gao et al., 2024).

    python -m jaxmem.interop.lm_eval run --model jaxmem --model_args pretrained=DIR --tasks arc_easy

is the command line of lm_eval with our model registered. lm_eval has no entry point for models.
"""

import sys
from collections.abc import Sequence
from typing import Any

import jax

try:
    import lm_eval.utils as lm_utils
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
except ImportError as error:
    raise ImportError('the harness wants lm-eval: pip install "jaxmem[eval]"') from error

from ..models.chat_messages import chat_prompt
from ..models.continuation_scores import ContinuationScorer
from ..models.generation import generate
from ..models.loading import load
from ..models.model import Model
from ..models.text_models import context as most_tokens

_MOST_NEW_TOKENS = 256
_DEFAULT_DEVICE = "cuda:0"  # what the command line says where nobody has chosen one


@register_model("jaxmem")
class JaxmemLM(TemplateLM):
    """A model of ours for `lm_eval.simple_evaluate(model=JaxmemLM(model), ...)`.

    First tokens that texts share are read once, and encoded weights stay encoded. With
    `simple_evaluate` pass `bootstrap_iters=0`: its bootstrap forks, which JAX's threads do not
    stand.

    Args:
        pretrained: a `jm.models.Model`, or what `jm.models.load` takes.
        dtype: as `jm.models.load` takes it.
        encoded: as `jm.models.load` takes it.
        batch_size: the most rows in a batch; 32 for "auto", and for 1, the harness's default.
        max_length: the most tokens of a context and its continuation; the model's context if None.
        device: the platform that JAX runs on, such as "cpu"; None, or the harness's default
            "cuda:0": JAX chooses it.
        max_batch_size: what the command line passes beside "auto"; None, or at least 32.

    Raises:
        ValueError: the model predicts no text or has no tokenizer; an option cannot be.
    """

    def __init__(
        self,
        pretrained: Model | str,
        *,
        dtype: str | None = None,
        encoded: bool = False,
        batch_size: int | str = 32,
        max_length: int | None = None,
        device: str | None = None,
        max_batch_size: int | None = None,
    ):
        super().__init__()
        if max_batch_size is not None and int(max_batch_size) < 32:
            raise ValueError(f"max_batch_size is {max_batch_size}: give batch_size in its place")
        is_model = isinstance(pretrained, Model)
        self.model = pretrained if is_model else load(pretrained, dtype=dtype, encoded=encoded)
        if self.model.tokenizer is None:
            raise ValueError(f"{self.model.source} has no tokenizer, which the harness takes")
        if device not in (None, _DEFAULT_DEVICE, jax.default_backend()):
            raise ValueError(f"device is {device!r}, expected {jax.default_backend()!r} or None")
        rows = 32 if str(batch_size).startswith("auto") or int(batch_size) == 1 else int(batch_size)
        self.scorer = ContinuationScorer(self.model, batch=rows)
        room = most_tokens(self.model)
        self.max_length = room if max_length is None else int(max_length)
        if not 2 <= self.max_length <= room:
            raise ValueError(f"max_length is {max_length}, expected 2 to {room}")

    @property
    def eot_token_id(self) -> int:
        """The first of the model's end tokens, or 0 if it has none."""
        return next(iter(self.model.config.eos), 0)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without a context: the token that begins texts."""
        first = getattr(self.model.config, "bos", None)
        return self.eot_token_id if first is None else first

    @property
    def tokenizer_name(self) -> str:
        """For the harness's cache of requests."""
        return self.model.source.replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The model's own template."""
        return self.model.chat_template if chat_template else None

    def apply_chat_template(
        self, chat_history: Sequence[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The prompt that the model's chat template makes of messages."""
        variables = {"add_generation_prompt": add_generation_prompt}
        return chat_prompt(self.model, list(chat_history), variables=variables)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """The ids of a text; special tokens are added if the tokenizer does so by itself."""
        special = True if add_special_tokens is None else add_special_tokens
        first = self.model.tokenizer.id_to_token(self.prefix_token_id)
        if add_special_tokens is None and first and string.startswith(first):
            special = False
        return self.model.tokenizer.encode(string, add_special_tokens=special).ids

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """(logprob, whether greedy) of each; what is too long loses its beginning."""
        pairs = []
        for _texts, before, after in requests:
            kept = (before + after)[-(self.max_length + 1) :]
            count = min(len(after), len(kept) - 1)
            pairs.append((kept[:-count], kept[-count:]))
        found = [(score.logprob, score.greedy) for score in self.scorer(pairs)]
        for (texts, _, _), score in zip(requests, found):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, score)
        return found

    def loglikelihood_rolling(self, requests: list, disable_tqdm: bool = False) -> list[float]:
        """The loglikelihood of each whole text, in windows of the model's context."""
        windows: list[tuple[Any, list[int], list[int]]] = []
        counts = []
        for (text,) in (request.args for request in requests):
            rolling = lm_utils.get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            own = [(None, *lm_utils.make_disjoint_window(pair)) for pair in rolling]
            windows += own
            counts.append(len(own))
        scores = iter(self._loglikelihood_tokens(windows))
        return [sum(next(scores)[0] for _ in range(count)) for count in counts]

    def generate_until(self, requests: list, disable_tqdm: bool = False) -> list[str]:
        """The text after each context, up to one of the texts in `until`."""
        found = []
        for prompt, options in (request.args for request in requests):
            asked = dict(options)
            until = asked.pop("until", None) or []
            until = [until] if isinstance(until, str) else list(until)
            count = int(asked.pop("max_gen_toks", asked.pop("max_new_tokens", _MOST_NEW_TOKENS)))
            temperature = float(asked.pop("temperature", 0.0) or 0.0)
            if not asked.pop("do_sample", temperature > 0):
                temperature = 0.0
            sampling = {k: asked.pop(k) for k in ("top_k", "top_p", "min_p") if k in asked}
            if asked:
                raise ValueError(f"generation options {asked} are not known here")
            if count >= self.max_length:
                raise ValueError(f"max_gen_toks is {count}, expected below {self.max_length}")
            ids = self.tok_encode(prompt)[-(self.max_length - count) :]
            text = generate(
                self.model, ids, max_new_tokens=count, temperature=temperature, **sampling
            ).text
            ends = [at for end in until if end and (at := text.find(end)) >= 0]
            found.append(text[: min(ends, default=len(text))])
            self.cache_hook.add_partial("generate_until", (prompt, options), found[-1])
        return found


def main(line: Sequence[str] | None = None) -> None:
    """The command line of lm_eval, in which `--model jaxmem` is known."""
    from lm_eval.__main__ import cli_evaluate

    if line is not None:
        sys.argv = ["lm_eval", *line]
    cli_evaluate()


if __name__ == "__main__":
    main()
