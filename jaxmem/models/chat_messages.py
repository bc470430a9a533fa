"""chat: messages made a prompt by the model's own template, and an answer generated."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..core.arguments import shown, takes
from ..formats import chat_template
from .generation import Generation, generate
from .model import Model
from .prompts import whole_text
from .tokenizer_files import TOKENIZER_CONFIG

Messages = str | Sequence[Mapping[str, Any]]
template_process_started = chat_template.started


@takes()
def chat_prompt(
    model: Model, messages: Messages, *, variables: Mapping[str, Any] | None = None
) -> str:
    """The prompt that the model's chat template makes of messages, up to where the answer begins.

    Args:
        model: a model with a chat template, such as an instruct model of Hugging Face or GGUF.
        messages: texts in turn, each `{"role": "user", "content": text}` with the role "system",
            "user", "assistant" or another that the template knows; or the text of one user.
        variables: what else the template may name, such as `{"enable_thinking": False}` or
            `{"tools": [...]}`, in types of JSON; they take the place of `add_generation_prompt`,
            `bos_token` and other tokens of the tokenizer, too.

    Raises:
        ValueError: the model has no template; there are no messages; the template refuses them, or
            takes too much time or memory.
        TypeError: a message is no mapping with a text as its role.
        ImportError: the package jinja2 is missing.

    Example:
        >>> from jaxmem.models import Model, chat_prompt
        >>> turns = "{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}[answer]"
        >>> chat_prompt(Model(None, {}, None, "a model", chat_template=turns), "Hello")
        '[user] Hello [answer]'
    """
    if model.chat_template is None:
        raise ValueError(f"{model.source} has no chat template; generate goes on with a text")
    messages = [_message(m) for m in _as_list(messages)]
    if not messages:
        raise ValueError("there are no messages, expected at least one")
    names = {"messages": messages, "add_generation_prompt": True, **special_tokens(model)}
    try:
        return chat_template.render(model.chat_template, [names | dict(variables or {})])[0]
    except ValueError as error:
        raise ValueError(f"{model.source}: {error}") from error


@takes()
def chat(
    model: Model,
    messages: Messages,
    *,
    variables: Mapping[str, Any] | None = None,
    **options: Any,
) -> Generation:
    """Generates the answer of an instruct model to messages.

    `Model.chat` is this function.

    Args:
        model: a model with a chat template and a tokenizer.
        messages: as `chat_prompt` takes them.
        variables: as `chat_prompt` takes them.
        options: those of `generate`, such as `max_new_tokens` and `stream`.

    Raises:
        ValueError: as `chat_prompt` and `generate`; the model has no tokenizer.
        TypeError: as `chat_prompt` and `generate`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from jaxmem.models import Model, chat
        >>> from jaxmem.architectures import llama
        >>> sizes = dict(vocab=4, width=8, ffn=8, layers=1, heads=1, kv_heads=1, head_dim=8)
        >>> config = llama.Config(**sizes)
        >>> init = jax.jit(llama.module(config).init)
        >>> params = init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
        >>> words = {"user": 0, "hello": 1, "answer": 2, "?": 3}
        >>> tokenizer = Tokenizer(models.WordLevel(words, unk_token="?"))
        >>> tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> turns = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}answer"
        >>> model = Model(config, params, tokenizer, "random", chat_template=turns)
        >>> chat(model, "hello", max_new_tokens=2).prompt.tolist()
        [[0, 1, 2]]
    """
    return generate(model, chat_tokens(model, messages, variables=variables), **options)


def chat_tokens(
    model: Model, messages: Messages, *, variables: Mapping[str, Any] | None = None
) -> np.ndarray:
    """The token ids (tokens,) i32 of the prompt that `chat_prompt` makes of the same arguments.

    Raises:
        ValueError: as `chat_prompt`; the model has no tokenizer.
        TypeError: as `chat_prompt`.
    """
    if model.tokenizer is None:
        raise ValueError(f"{model.source} has no tokenizer, which a chat takes")
    text = whole_text(chat_prompt(model, messages, variables=variables))
    ids = model.tokenizer.encode(text, add_special_tokens=False).ids  # the template writes them
    return np.array(ids, np.int32)


def _as_list(messages: Any) -> list:
    if isinstance(messages, str):
        return [{"role": "user", "content": messages}]
    if not isinstance(messages, list | tuple):
        raise TypeError(f"messages is {shown(messages)}, expected a text or a list of messages")
    return list(messages)


def _message(message: Any) -> dict[str, Any]:
    """The message as a dict, checked."""
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise TypeError(
            f'a message is {shown(message)}, expected {{"role": "user", "content": "..."}}'
        )
    return dict(message)


def special_tokens(model: Model) -> dict[str, str]:
    """The special tokens by the names that templates have for them, such as `bos_token`."""
    if model.tokenizer is None:
        return {}
    ids = {"bos_token": getattr(model.config, "bos", None)}
    ids |= {"eos_token": next(iter(getattr(model.config, "eos", ())), None)}
    tokens = {n: None if i is None else model.tokenizer.id_to_token(i) for n, i in ids.items()}
    for name, value in model.hf_files.get(TOKENIZER_CONFIG, {}).items():
        if name.endswith("_token"):
            tokens[name] = value.get("content") if isinstance(value, Mapping) else value
    return {name: text for name, text in tokens.items() if isinstance(text, str)}
