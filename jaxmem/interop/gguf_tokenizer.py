"""All fields of a GGUF file's tokenizer: vocabulary, special tokens, chat template.

llama.cpp has its own code for each kind of tokenizer, and a file only names the kind. A tokenizer
is therefore written only if the one that its fields describe does the same.
"""

import json
import pathlib
from typing import TYPE_CHECKING, Any

from ..core.warning import warn
from ..formats import gguf, gguf_end_tokens, tokenizers
from ..formats.gguf import Gguf
from ..models.model import Model
from ..models.tokenizer_files import TOKENIZER_CONFIG
from . import gguf_field_bytes

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_TEXT, _MODEL = "tokenizer.huggingface.json", "tokenizer.ggml.model"
_TEMPLATE = "tokenizer.chat_template"
_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6  # types of a token
_PRES = ("gpt-2", "smollm", "llama-bpe", "qwen2", "default")  # one name for each way to split text
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_SPACE = "▁"


def tokenizer_fields(
    model: Model, architecture: str, *, vocabulary: bool = True
) -> dict[str, bytes]:
    """The encoded fields of the tokenizer, copied if the model was read from a GGUF file.

    The fields of a model without a tokenizer, or without `vocabulary`, say that there is none, and
    have the model's special tokens and the text of its tokenizer.json.

    Raises:
        ValueError: llama.cpp has no tokenizer that does what the model's does.
    """
    none = {_MODEL: gguf_field_bytes.field(_MODEL, "none")}
    source = pathlib.Path(model.source)
    if source.suffix == ".gguf" and source.is_file() and vocabulary:
        return none | gguf.encoded_fields(source, "tokenizer.")
    values, named, config = {}, {}, model.config
    if model.tokenizer is not None:
        values[_TEXT] = model.tokenizer.to_str()
    if model.tokenizer is not None and vocabulary:
        try:
            named = fields(model.tokenizer, config.vocab, architecture)
        except ValueError as error:
            raise ValueError(
                f"the tokenizer of {model.source} cannot be written for llama.cpp: {error}; "
                "tokenizer=False (--no-tokenizer) writes the file without a vocabulary"
            ) from error
    if model.chat_template is not None:
        values[_TEMPLATE] = model.chat_template
    ends, lost = end_fields(config.eos, named)
    if lost:
        warn(
            f"llama.cpp will not stop at {lost}: a GGUF file names three end tokens, and "
            f"{model.source} has {len(config.eos)}"
        )
    bos = {} if config.bos is None else {"bos_token_id": config.bos}
    special = special_fields(model)
    for name, value in (bos | special | named | ends).items():
        values[f"tokenizer.ggml.{name}"] = value
    return none | {name: gguf_field_bytes.field(name, value) for name, value in values.items()}


def fields(tokenizer: "Tokenizer", vocab: int, architecture: str) -> dict[str, Any]:
    """The fields of a tokenizer for a model of `vocab` tokens, without those of its special tokens.

    Raises:
        ValueError: llama.cpp has no tokenizer that does the same.
    """
    spec = json.loads(tokenizer.to_str())
    if spec["model"].get("type") != "BPE":
        raise ValueError(f"its model is {spec['model'].get('type')}, expected BPE")
    tokens, types = _tokens(tokenizer, spec, vocab)
    values = {"tokens": tokens, "token_type": types}
    if (spec["decoder"] or {}).get("type") == "ByteLevel":
        values |= {"model": "gpt2", "pre": _pre(spec)}
        values["merges"] = [" ".join(merge) for merge in _merges(spec)]
    else:
        values |= {"model": "llama", "add_space_prefix": _has_space_prefix(spec)}
        values |= _pieces(spec, values, architecture)
    return values | _surroundings(tokenizer)


def end_fields(eos: tuple[int, ...], vocabulary: dict[str, Any]) -> tuple[dict[str, int], list]:
    """The fields of the tokens that end a text, and the ids for which there is no field.

    llama.cpp knows some tokens by their text; the others come first.
    """
    ids = list(dict.fromkeys((*(_first(vocabulary, "eos_token_id")), *eos)))
    file = Gguf(pathlib.Path(), _named(vocabulary), {})
    known = gguf_end_tokens.known_by_text(file)
    ordered = ids[:1] + sorted(ids[1:], key=lambda i: i in known)
    named = dict(zip(("eos_token_id", "eot_token_id", "eom_token_id"), ordered))
    return named, [i for i in ordered[3:] if i not in known]


def special_fields(model: Model) -> dict[str, int]:
    """The fields of the unknown and padding tokens that tokenizer_config.json names."""
    config, fields = model.hf_files.get(TOKENIZER_CONFIG, {}), {}
    for name, field in {"unk_token": "unknown_token_id", "pad_token": "padding_token_id"}.items():
        token = config.get(name)
        text = token.get("content") if isinstance(token, dict) else token
        found = model.tokenizer.token_to_id(text) if model.tokenizer and text else None
        fields |= {} if found is None else {field: found}
    return fields


def _tokens(tokenizer: "Tokenizer", spec: dict, vocab: int) -> tuple[list[str], list[int]]:
    """The text and the type of each of `vocab` tokens; those without a text are unused."""
    ids = tokenizer.get_vocab(with_added_tokens=True)
    if max(ids.values(), default=0) >= vocab:
        raise ValueError(f"it has a token {max(ids.values())}, but the model {vocab} tokens")
    tokens = [f"[PAD{i}]" for i in range(vocab)]
    types = [_UNUSED] * vocab
    for token, i in ids.items():
        tokens[i], types[i] = token, _NORMAL
    for added in spec["added_tokens"]:
        if added["lstrip"] or added["rstrip"] or added["single_word"]:
            raise ValueError(f"its token {added['content']!r} takes spaces or whole words")
        types[added["id"]] = _CONTROL if added["special"] else _USER
    return tokens, types


def _pre(spec: dict) -> str:
    """llama.cpp's name of the way in which byte-level BPE splits text before it merges."""
    splits = _splits(spec)
    for pre in _PRES:
        named = _named({"model": "gpt2", "pre": pre, "tokens": ["a"], "merges": []})
        candidate = tokenizers.from_gguf(Gguf(pathlib.Path(), named, {}))
        if _splits(json.loads(candidate.to_str())) == splits:
            return pre
    raise ValueError("it splits text in a way for which no name of llama.cpp is known here")


def _splits(spec: dict) -> tuple:
    """What decides how byte-level BPE splits and merges text, apart from the vocabulary."""
    model = spec["model"]
    options = ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
    steps = [
        {key: value for key, value in step.items() if key != "trim_offsets"}
        for step in _steps(spec["pre_tokenizer"], "pretokenizers")
    ]
    merging = bool(model.get("ignore_merges")), *(model.get(name) or None for name in options)
    return _steps(spec["normalizer"], "normalizers"), steps, merging


def _steps(step: dict | None, parts: str) -> list[dict]:
    """The steps of a normalizer or pre-tokenizer, those of a sequence one by one."""
    if step is None:
        return []
    if step["type"] != "Sequence":
        return [step]
    return [inner for part in step[parts] for inner in _steps(part, parts)]


def _merges(spec: dict) -> list[tuple[str, str]]:
    """The merges of a BPE in their order."""
    merges = spec["model"]["merges"]
    return [tuple(m.split(" ") if isinstance(m, str) else m) for m in merges]


def _has_space_prefix(spec: dict) -> bool:
    """Whether a tokenizer that writes spaces as ▁ puts one before the text.

    Raises:
        ValueError: It does something else to the text, or does not write spaces so.
    """
    steps = _steps(spec["normalizer"], "normalizers")
    steps += _steps(spec["pre_tokenizer"], "pretokenizers")
    replaces = prefix = False
    for step in steps:
        if step["type"] == "Replace" and step["pattern"] == {"String": " "}:
            replaces |= step["content"] == _SPACE
        elif step["type"] == "Prepend" and step["prepend"] == _SPACE:
            prefix = True
        elif step["type"] == "Metaspace" and step.get("split") is False:
            replaces |= step["replacement"] == _SPACE
            prefix |= step.get("prepend_scheme", "always") != "never"
        elif step["type"] != "Split" or step["pattern"] != {"String": " "} or not replaces:
            raise ValueError(f"its step {step['type']} is none of byte-level BPE or SentencePiece")
    if not replaces or not spec["model"].get("byte_fallback"):
        raise ValueError("it is neither byte-level BPE nor SentencePiece with tokens for bytes")
    return prefix


def _pieces(spec: dict, values: dict[str, Any], architecture: str) -> dict[str, Any]:
    """The tokens, types and scores of a SentencePiece vocabulary.

    In SentencePiece a token has a score, and of all pairs of tokens that make a token the pair with
    the highest score merges first. The score is minus the rank of the token's first merge.

    Raises:
        ValueError: The merges are not those of SentencePiece.
    """
    tokens, types, merges = values["tokens"], list(values["token_type"]), _merges(spec)
    ids, pieces = {token: i for i, token in enumerate(tokens)}, {}
    for byte in _BYTES:
        if byte not in ids:
            raise ValueError(f"it has no token {byte}")
        types[ids[byte]] = _BYTE
    unknown = ids.get(spec["model"].get("unk_token"))
    if unknown is not None:
        pieces["unknown_token_id"], types[unknown] = unknown, _UNKNOWN
    order = dict.fromkeys(first + second for first, second in merges)
    ranks = {token: float(-rank) for rank, token in enumerate(order)}
    scores = [ranks.get(token, float(-len(ranks))) for token in tokens]
    stored = [t.replace(_SPACE, " ") if kind == _USER else t for t, kind in zip(tokens, types)]
    pieces |= {"tokens": stored, "token_type": types, "scores": scores}
    named = _named(values | pieces) | {"general.architecture": architecture}
    rebuilt = tokenizers.from_gguf(Gguf(pathlib.Path(), named, {}))
    again = _merges(json.loads(rebuilt.to_str()))
    if set(again) != set(merges) or _runs(again) != _runs(merges):
        raise ValueError(
            "its merges are not those of SentencePiece, which merge by a token's score"
        )
    return pieces


def _runs(merges: list[tuple[str, str]]) -> list[str]:
    """The tokens that merges make, in their order; merges of one token follow each other."""
    made = [first + second for first, second in merges]
    return [token for i, token in enumerate(made) if i == 0 or made[i - 1] != token]


def _surroundings(tokenizer: "Tokenizer") -> dict[str, Any]:
    """The tokens that the tokenizer puts before and after a text, and whether it does."""
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    whole = tokenizer.encode("a").ids
    starts = [i for i in range(len(whole) - len(bare) + 1) if whole[i : i + len(bare)] == bare]
    before = whole[: starts[0]] if starts else whole
    after = whole[len(before) + len(bare) :]
    if not starts or len(before) > 1 or len(after) > 1:
        raise ValueError(f"it makes {whole} of 'a', more than BOS and EOS round the text {bare}")
    values: dict[str, Any] = {"add_bos_token": bool(before), "add_eos_token": bool(after)}
    values |= {"bos_token_id": before[0]} if before else {}
    return values | ({"eos_token_id": after[0]} if after else {})


def _first(vocabulary: dict[str, Any], name: str) -> list[int]:
    """The id in a field, if there is one."""
    return [vocabulary[name]] if name in vocabulary else []


def _named(vocabulary: dict[str, Any]) -> dict[str, Any]:
    """The fields under their names in a GGUF file."""
    return {f"tokenizer.ggml.{name}": value for name, value in vocabulary.items()}
