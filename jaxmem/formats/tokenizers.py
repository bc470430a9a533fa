"""Tokenizers from the vocabularies in GGUF and llama2.c files, which have no tokenizer.json.

`tokenizer.encode(text)` puts the BOS token before the text if the model has one;
`encode(text, add_special_tokens=False)` does not.
"""

import pathlib
import struct
from typing import TYPE_CHECKING, Any

from .gguf import Gguf

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_NORMAL, _UNKNOWN, _CONTROL, _USER, _BYTE = 1, 2, 3, 4, 6  # tokenizer.ggml.token_type

# Names of llama.cpp for the splits of text before merging; the patterns are from tokenizer.json.
_GPT2 = ("gpt-2", "gpt2", "mpt", "olmo", "phi-2")
_DIGITS = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
_LLAMA3 = ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral")
_QWEN2 = ("qwen2", "deepseek-r1-qwen", "stablelm2")
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+"
_PATTERNS = dict.fromkeys(_LLAMA3, _WORDS + r"|\p{N}{1,3}" + _REST) | dict.fromkeys(
    _QWEN2, _WORDS + r"|\p{N}" + _REST
)


def from_gguf(file: Gguf) -> "Tokenizer":
    """The tokenizer a GGUF file's fields describe: byte-level BPE, SentencePiece BPE, WordPiece.

    Raises:
        ValueError: The fields are missing or of a kind that is not supported; put a
            tokenizer.json beside the file.
        ImportError: The `tokenizers` package is missing.
    """
    fields = {k.removeprefix("tokenizer.ggml."): v for k, v in file.fields.items()}
    builders = {"gpt2": _byte_level, "llama": _sentencepiece, "bert": _wordpiece}
    kind = fields.get("model")
    if kind not in builders or not isinstance(fields.get("tokens"), list):
        raise ValueError(f"{file.path} has a tokenizer {kind!r}, expected {', '.join(builders)}")
    fields["types"] = fields.get("token_type", [_NORMAL] * len(fields["tokens"]))
    fields["gemma"] = fields.get("general.architecture", "").startswith("gemma")
    try:
        tokenizer = builders[kind](fields)
        _add_special_tokens(tokenizer, fields)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise ValueError(f"{file.path} has a tokenizer that cannot be built: {error!r}") from error
    return tokenizer


def from_llama2c(path: pathlib.Path, size: int) -> "Tokenizer":
    """The tokenizer in a llama2.c tokenizer file (`tok512.bin`) of `size` tokens.

    Raises:
        ValueError: The file is not of that length.
        ImportError: The `tokenizers` package is missing.
    """
    data, tokens, scores, offset = path.read_bytes(), [], [], 4
    try:
        for _ in range(size):
            score, length = struct.unpack_from("<fi", data, offset)
            (text,) = struct.unpack_from(f"{length}s", data, offset + 8)
            tokens.append(text.decode().replace(" ", "▁"))
            scores.append(score)
            offset += 8 + length
    except (struct.error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no llama2.c tokenizer of {size} tokens: {error}") from error
    tokens[:3] = "<unk>", "<s>", "</s>"
    types = [_UNKNOWN, _CONTROL, _CONTROL, *[_BYTE] * 256, *[_NORMAL] * (size - 259)]
    fields = {"tokens": tokens, "scores": scores, "types": types, "gemma": False}
    tokenizer = _sentencepiece(fields)
    _add_special_tokens(tokenizer, fields | {"bos_token_id": 1})
    return tokenizer


def begin(tokenizer: "Tokenizer", token: str) -> None:
    """Makes `encode` put `token` before the text."""
    from tokenizers.processors import TemplateProcessing

    tokenizer.add_special_tokens([token])
    tokenizer.post_processor = TemplateProcessing(
        single=f"{token} $A", special_tokens=[(token, tokenizer.token_to_id(token))]
    )


def _byte_level(fields: dict[str, Any]) -> "Tokenizer":
    """Byte-level BPE with the splits that the field `pre` names; sets a missing `add_bos_token`."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    pre = fields.get("pre", "gpt-2")
    vocabulary = {token: i for i, token in enumerate(fields["tokens"])}
    merges = [tuple(merge.split(" ")) for merge in fields["merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=pre in _LLAMA3))
    if pre in _GPT2:
        splits = []
    elif pre in _DIGITS:
        splits = [pre_tokenizers.Digits(individual_digits=True)]
    elif pre in _PATTERNS:
        splits = [pre_tokenizers.Split(Regex(_PATTERNS[pre]), "isolated")]
    else:
        raise ValueError(f"pre-tokenizer {pre!r} is unknown; put a tokenizer.json beside the file")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre not in _PATTERNS)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    if pre in _QWEN2:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    fields.setdefault("add_bos_token", pre in _LLAMA3)
    return tokenizer


def _sentencepiece(fields: dict[str, Any]) -> "Tokenizer":
    """SentencePiece BPE: two tokens merge if together they are a token, the highest score first.

    `fields["tokens"]` becomes the vocabulary of the result, and a missing `add_bos_token` true.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers

    tokens, scores = list(fields["tokens"]), fields["scores"]
    if fields["gemma"]:  # Gemma stores runs of spaces as spaces and merges by token id
        tokens = ["▁" * len(t) if t and not t.strip(" ") else t for t in tokens]
        scores = range(0, -len(tokens), -1)
    vocabulary = {token: i for i, token in enumerate(tokens)}
    entries = zip(tokens, scores, fields["types"])
    merges = [
        (score, cut, len(token) - cut, token)
        for token, score, kind in entries
        if kind in (_NORMAL, _USER)
        for cut in range(1, len(token))
        if token[:cut] in vocabulary and token[cut:] in vocabulary
    ]
    merges = [(token[:cut], token[cut:]) for _, cut, _, token in sorted(merges, reverse=True)]
    unknown = tokens[fields.get("unknown_token_id", 0)]
    model = models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    prefix = fields.get("add_space_prefix", not fields["gemma"])
    spaces = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([*[normalizers.Prepend("▁")] * prefix, spaces])
    strip = [decoders.Strip(" ", 1, 0)] * prefix
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    fields["tokens"] = tokens
    fields.setdefault("add_bos_token", True)
    return tokenizer


def _wordpiece(fields: dict[str, Any]) -> "Tokenizer":
    """WordPiece, as BERT has it: text between [CLS] and [SEP], in lower case if all tokens are.

    `fields["tokens"]` becomes the vocabulary of the result.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    tokens = [  # llama.cpp marks the first piece of a word, WordPiece the others
        t if kind in (_UNKNOWN, _CONTROL) else t[1:] if t.startswith("▁") else "##" + t
        for t, kind in zip(fields["tokens"], fields["types"])
    ]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    lowercase = all(t == t.lower() for t, kind in zip(tokens, fields["types"]) if kind == _NORMAL)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special_tokens = [(name, vocabulary[name]) for name in ("[SEP]", "[CLS]")]
    tokenizer.post_processor = processors.BertProcessing(*special_tokens)
    fields["tokens"], fields["add_bos_token"] = tokens, False
    return tokenizer


def _add_special_tokens(tokenizer: "Tokenizer", fields: dict[str, Any]) -> None:
    """Adds the control and user tokens, and a BOS before the text where the fields ask for it."""
    from tokenizers import AddedToken

    for token, kind in zip(fields["tokens"], fields["types"]):
        if kind == _CONTROL:
            tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True)])
        elif kind == _USER:
            tokenizer.add_tokens([AddedToken(token, normalized=False)])
    if fields["add_bos_token"]:
        begin(tokenizer, fields["tokens"][fields["bos_token_id"]])
