"""Tokenizers of folders without tokenizer.json: from the files of a vocabulary.

tokenizer_config.json says what the files do not: the class, the special tokens, and which of them
are put around a text. What transformers makes of the same files is made here.
"""

import pathlib
from typing import TYPE_CHECKING, Any

from ..formats import tokenizers
from ..formats.sentencepiece_model import from_sentencepiece
from ..formats.tiktoken_ranks import from_tiktoken, is_tiktoken
from ..io.json_fields import JsonFields, read_object

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FILES = ("vocab.json", "merges.txt", "vocab.txt", "added_tokens.json")
SENTENCEPIECE = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")
_SPECIAL += ("mask_token", "additional_special_tokens", "extra_special_tokens")
# {class: llama.cpp's name for its split of text}
_SPLITS = {"GPT2": "gpt-2", "Roberta": "gpt-2", "Bart": "gpt-2", "Qwen2": "qwen2"}
_TIKTOKEN = {"QWen": "qwen2", "Llama": "llama-bpe", "PreTrained": "llama-bpe"}
_CLIP_WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)
_BERTS = ("Bert", "DistilBert", "Electra")
# {class of a SentencePiece vocabulary: whether BOS and EOS are put around a text}
_ENDS = {"Llama": (True, False), "Gemma": (True, False), "T5": (False, True)}
_ENDS |= {"XLMRoberta": (True, True)}
_CLASSES = {"gpt2": "GPT2", "qwen2": "Qwen2", "qwen3": "Qwen2", "bert": "Bert", "t5": "T5"}
_CLASSES |= {"llama": "Llama", "mistral": "Llama", "mixtral": "Llama", "gemma": "Gemma"}
_CLASSES |= {
    "clip": "CLIP",
    "xlm-roberta": "XLMRoberta",
    "gemma2": "Gemma",
    "roberta": "Roberta",
    "bart": "Bart",
    "mt5": "T5",
}


def read_vocabulary(folder: pathlib.Path) -> "Tokenizer | None":
    """The tokenizer of the vocabulary in a folder; None if the folder has none.

    It is byte-level BPE of vocab.json and merges.txt, WordPiece of vocab.txt, a SentencePiece
    model, or a file of tiktoken.

    Raises:
        ValueError: a file is damaged, or the tokenizer is of a class that is not made here.
        ImportError: the `tokenizers` package is missing.
    """
    has = lambda *names: all((folder / name).is_file() for name in names)
    model = next((folder / name for name in SENTENCEPIECE if has(name)), None)
    ranks = next(iter(sorted(folder.glob("*.tiktoken"))), None)
    if not (model or ranks or has("vocab.json", "merges.txt") or has("vocab.txt")):
        return None
    try:
        return _tokenizer(folder, model, ranks)
    except (ImportError, ValueError):
        raise
    except Exception as error:  # the one class that the package tokenizers raises, and others
        raise ValueError(f"{folder} has a vocabulary that cannot be read: {error!r}") from error


def _tokenizer(
    folder: pathlib.Path, model: pathlib.Path | None, ranks: pathlib.Path | None
) -> "Tokenizer":
    """The tokenizer of a folder, which has a SentencePiece `model`, `ranks` of tiktoken, or both
    files of BPE, or else vocab.txt."""
    said = _object(folder / "tokenizer_config.json")
    fields = JsonFields(said, f"{folder / 'tokenizer_config.json'}: ")
    name = fields.text("tokenizer_class", None) or _CLASSES.get(
        _object(folder / "config.json").get("model_type"), "a class that no file names"
    )
    kind = name.removesuffix("Fast").removesuffix("Tokenizer")
    if ranks or (model and is_tiktoken(model)):
        tokenizer = from_tiktoken(ranks or model, _of(kind, _TIKTOKEN, folder))
    elif model:
        tokenizer = from_sentencepiece(model, fairseq=kind == "XLMRoberta")
        _of(kind, _ENDS, folder)
    elif kind == "CLIP" and (folder / "vocab.json").is_file():
        tokenizer = _clip(folder)
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        prefix = fields.boolean("add_prefix_space", False)
        tokenizer = _byte_level(folder, _of(kind, _SPLITS, folder), prefix)
    else:
        _of(kind, dict.fromkeys(_BERTS), folder)
        tokenizer = _wordpiece(folder, fields)
    _add_tokens(tokenizer, folder, said)
    tokenizers.surround(tokenizer, *_ends(fields, said, kind))
    return tokenizer


def _object(path: pathlib.Path) -> dict[str, Any]:
    """The JSON object in a file; an empty one if the file is missing."""
    return read_object(path) if path.is_file() else {}


def _of(kind: str, classes: dict[str, Any], folder: pathlib.Path) -> Any:
    """What `classes` says of a class.

    Raises:
        ValueError: it says nothing.
    """
    if kind not in classes:
        raise ValueError(
            f"{folder} has the vocabulary of {kind!r} and no tokenizer.json, expected that of "
            f"{', '.join(classes)}; AutoTokenizer.from_pretrained(folder).save_pretrained(folder) "
            "of transformers writes tokenizer.json"
        )
    return classes[kind]


def _byte_level(folder: pathlib.Path, pre: str, prefix: bool) -> "Tokenizer":
    """Byte-level BPE of vocab.json and merges.txt."""
    vocabulary = read_object(folder / "vocab.json")
    return tokenizers.byte_level(vocabulary, _merges(folder), pre, prefix=prefix)


def _merges(folder: pathlib.Path) -> list[tuple[str, ...]]:
    """The pairs of merges.txt."""
    lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
    return [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]


def _clip(folder: pathlib.Path) -> "Tokenizer":
    """BPE of bytes in lower case, with the end of a word in its tokens, as CLIP has it."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    vocabulary = read_object(folder / "vocab.json")
    options = {"end_of_word_suffix": "</w>", "unk_token": "<|endoftext|>"}
    tokenizer = Tokenizer(models.BPE(vocabulary, _merges(folder), **options))
    space = normalizers.Replace(Regex(r"\s+"), " ")
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), space, normalizers.Lowercase()])
    words = pre_tokenizers.Split(Regex(_CLIP_WORDS), "removed", invert=True)
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, by_bytes])
    parts = [decoders.ByteLevel(), decoders.Replace("</w>", " "), decoders.Strip(" ", 0, 1)]
    tokenizer.decoder = decoders.Sequence(parts)
    return tokenizer


def _wordpiece(folder: pathlib.Path, fields: JsonFields) -> "Tokenizer":
    """WordPiece of vocab.txt, as BERT has it."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    lines = (folder / "vocab.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n")
    vocabulary = {token: i for i, token in enumerate(lines)}
    unknown = fields.data.get("unk_token") or "[UNK]"
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=_text(unknown)))
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=fields.boolean("do_lower_case", True),
        handle_chinese_chars=fields.boolean("tokenize_chinese_chars", True),
        strip_accents=fields.boolean("strip_accents", False) if "strip_accents" in fields else None,
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _add_tokens(tokenizer: "Tokenizer", folder: pathlib.Path, said: dict[str, Any]) -> None:
    """Adds the tokens that the files name beside the vocabulary, with the ids that they name."""
    from tokenizers import AddedToken

    added = {int(i): token for i, token in (said.get("added_tokens_decoder") or {}).items()}
    for text, i in _object(folder / "added_tokens.json").items():
        added.setdefault(i, {"content": text, "special": True})
    for i, token in sorted(added.items()):
        options = {"normalized": False, "special": False} | token
        options.pop("__type", None)
        add = tokenizer.add_special_tokens if options["special"] else tokenizer.add_tokens
        add([AddedToken(**options)])
        if tokenizer.token_to_id(options["content"]) != i:
            raise ValueError(
                f"{folder}: the token {options['content']!r} has the id "
                f"{tokenizer.token_to_id(options['content'])}, its file says {i}"
            )
    found = (said.get(name) for name in _SPECIAL)
    named = [t for value in found for t in (value if isinstance(value, list) else [value]) if t]
    known = tokenizer.get_vocab()
    tokenizer.add_special_tokens([_text(t) for t in named if _text(t) in known])


def _text(token: Any) -> str:
    """The text of a token, which is written as one or as an object."""
    return token["content"] if isinstance(token, dict) else str(token)


def _ends(fields: JsonFields, said: dict[str, Any], kind: str) -> tuple[list[str], list[str]]:
    """The tokens before and after a text."""
    if kind in _BERTS or kind in ("Roberta", "Bart"):
        names = ("[CLS]", "[SEP]") if kind in _BERTS else ("<s>", "</s>")
        first, last = (said.get(n) or d for n, d in zip(("cls_token", "sep_token"), names))
        return [_text(first)], [_text(last)]
    has_bos, has_eos = _ENDS.get(kind, (kind == "CLIP",) * 2)
    defaults = {"Gemma": ("<bos>", "<eos>"), "GPT2": ("<|endoftext|>",) * 2}
    defaults["CLIP"] = "<|startoftext|>", "<|endoftext|>"
    bos, eos = defaults.get(kind, ("<s>", "</s>"))
    before = (
        [_text(said.get("bos_token") or bos)] if fields.boolean("add_bos_token", has_bos) else []
    )
    after = (
        [_text(said.get("eos_token") or eos)] if fields.boolean("add_eos_token", has_eos) else []
    )
    return before, after
