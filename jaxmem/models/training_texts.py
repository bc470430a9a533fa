"""documents, packed_batches: files as what a training step of a model reads."""

import os
from collections.abc import Callable, Sequence

from ..core.arguments import POSITIVE, takes
from ..data.documents import Documents
from ..data.packed_rows import Batches, PackedRows
from ..data.text_reader import FOLDER, PATHS, read
from ..formats import chat_template
from .chat_messages import special_tokens
from .model import Model

Paths = str | os.PathLike | Sequence[str | os.PathLike]


@takes(files=PATHS, width=POSITIVE, batch=POSITIVE, folder=FOLDER)
def packed_batches(
    model: Model,
    files: Paths,
    *,
    width: int,
    batch: int,
    longer: str = "split",
    seed: int = 0,
    shard: tuple[int, int] = (0, 1),
    separator: str | None = None,
    folder: str | os.PathLike | None = None,
) -> Batches:
    """An endless iterator of packed batches of files, which resumes: what a training loop reads.

    A batch is a dict of "ids", "segments" and "positions" (batch, width) i32 and "mask" (batch,
    width) bool, as `jm.data.PackedRows` has them. `iterator.state()` is a small dict, and
    `iterator.restore(state)` goes on from there.

    Args:
        model: a model with a tokenizer; and a chat template, if a file has messages.
        files: one path or several, as `jm.data.read` takes them.
        width: tokens of a row.
        batch: rows of a batch, of all processes.
        longer: what happens to a text that is longer than a row: "split" or "refuse".
        seed: of the packing and of the order.
        shard: (i, n), where this process is the i-th of n.
        separator: what stands between texts in a text file; None if a file is one text.
        folder: where the token ids are kept; None for memory.

    Raises:
        ValueError: the model has no tokenizer; `width` is over the model's context; or as
            `jm.data.read`, `jm.data.PackedRows` and `jm.data.Batches`.

    Example:
        >>> import pathlib, tempfile
        >>> import jaxmem as jm
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "c": 2}, unk_token="a"))
        >>> tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> model = jm.models.Model(None, {}, tokenizer, "a model")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "train.txt")
        ...     _ = path.write_text("a b c|b c|c a")
        ...     batches = jm.models.packed_batches(model, path, width=4, batch=2, separator="|")
        >>> sorted(next(batches)["segments"].tolist())
        [[1, 1, 1, 0], [1, 1, 2, 2]]
    """
    context = getattr(model.config, "context", None)
    if context is not None and width > context:
        raise ValueError(f"width is {width}, and {model.source} has a context of {context} tokens")
    texts = documents(model, files, separator=separator, folder=folder)
    rows = PackedRows(texts, width, longer=longer, seed=seed)
    return Batches(rows, batch, seed=seed, shard=shard)


@takes(files=PATHS, folder=FOLDER)
def documents(
    model: Model,
    files: Paths,
    *,
    separator: str | None = None,
    folder: str | os.PathLike | None = None,
) -> Documents:
    """The texts of files as ids of the model's tokenizer: `jm.data.read` with what the model knows.

    The tokenizer says what stands before and after a text; where it puts nothing after it, the
    token that ends a text of the model does. Messages are written by the chat template.

    Args:
        model: a model with a tokenizer; and a chat template, if a file has messages.
        files: one path or several.
        separator: what stands between texts in a text file; None if a file is one text.
        folder: where the token ids are kept; None for memory.

    Raises:
        ValueError: the model has no tokenizer, or no chat template for messages; or as
            `jm.data.read`.

    Example:
        >>> import pathlib, tempfile
        >>> import jaxmem as jm
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> words = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
        >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> model = jm.models.Model(None, {}, words, "a model")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "train.txt")
        ...     _ = path.write_text("a b|b a a")
        ...     jm.models.documents(model, path, separator="|").lengths.tolist()
        [2, 3]
    """
    if model.tokenizer is None:
        raise ValueError(f"{model.source} has no tokenizer, which turns texts into ids")

    def encode(text: str) -> Sequence[int]:
        return model.tokenizer.encode(text, add_special_tokens=False).ids

    begin, end = _around(model)
    chat = _template(model) if model.chat_template is not None else None
    return read(files, encode, begin=begin, end=end, chat=chat, separator=separator, folder=folder)


def _around(model: Model) -> tuple[list[int], list[int]]:
    """The tokens before and after a text."""
    whole, bare = (model.tokenizer.encode("a", add_special_tokens=x).ids for x in (True, False))
    places = [i for i in range(len(whole)) if whole[i : i + len(bare)] == bare]
    at = places[0] if places and bare else len(whole)
    after = whole[at + len(bare) :]
    return whole[:at], after or list(getattr(model.config, "eos", ()))[:1]


def _template(model: Model) -> Callable[[list[list[dict]], list[bool]], list[str]]:
    """What writes conversations, each up to where an answer begins or as they are."""

    def chat(conversations: list[list[dict]], prompts: list[bool]) -> list[str]:
        known = special_tokens(model)
        return chat_template.render(
            model.chat_template,
            [
                {"messages": messages, "add_generation_prompt": prompt, **known}
                for messages, prompt in zip(conversations, prompts)
            ],
        )

    return chat
