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

# llama.cpp's names for splits of text before merging; the patterns are from tokenizer.json.
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
# The pre-tokenizer "default", which is also meant where a file names none, splits four times.
_DEFAULT = (
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    r"[0-9][0-9][0-9]",
)
_BERT_CONTROL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_LONGEST_TOKEN = 1024  # characters: the time to find a token's merges grows with their square


def from_gguf(file: Gguf) -> "Tokenizer":
    """The tokenizer a GGUF file's fields describe: byte-level BPE, SentencePiece BPE, WordPiece.

    A field that is missing has the value that llama.cpp takes: 1 is the BOS of a SentencePiece
    vocabulary, byte-level BPE has none, and its text is split as `default` says.

    Raises:
        ValueError: The fields are damaged, of a kind that is not supported, or lack one without
            which there is no vocabulary; put a tokenizer.json beside the file.
        ImportError: The `tokenizers` package is missing.
    """
    fields = {k.removeprefix("tokenizer.ggml."): v for k, v in file.fields.items()}
    builders = {"gpt2": _byte_level, "llama": sentencepiece_bpe, "bert": _wordpiece}
    kind, tokens = fields.get("model"), fields.get("tokens")
    if not isinstance(kind, str) or kind not in builders:
        raise ValueError(f"{file.path} has a tokenizer {kind!r}, expected {', '.join(builders)}")
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise ValueError(f"{file.path} has a tokenizer {kind!r} without a list of tokens")
    embedding = file.tensors.get("token_embd.weight")
    if embedding is not None and len(tokens) > embedding.shape[0]:
        raise ValueError(
            f"{file.path} has a tokenizer of {len(tokens)} tokens, but {embedding.shape[0]} rows "
            "in token_embd.weight"
        )
    fields["gemma"] = str(fields.get("general.architecture", "")).startswith("gemma")
    try:
        fields["types"] = _types(fields)
        tokenizer = builders[kind](fields)
        _add_special_tokens(tokenizer, fields)
    except ImportError:
        raise
    except Exception as error:  # the one class that the package tokenizers raises
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
    tokenizer = sentencepiece_bpe(fields)
    _add_special_tokens(tokenizer, fields)
    return tokenizer


def surround(tokenizer: "Tokenizer", before: list[str], after: list[str]) -> None:
    """Makes `encode` put these tokens before and after the text."""
    from tokenizers.processors import TemplateProcessing

    tokens = [*before, *after]
    if not tokens:
        return
    tokenizer.add_special_tokens(tokens)
    tokenizer.post_processor = TemplateProcessing(
        single=[*before, "$A", *after],
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in tokens],
    )


def _types(fields: dict[str, Any]) -> list[int]:
    """The type of each token; without the field, BERT's special tokens are known by their text."""
    tokens, types = fields["tokens"], fields.get("token_type")
    if types is None:
        is_bert = fields["model"] == "bert"
        return [_CONTROL if is_bert and t in _BERT_CONTROL else _NORMAL for t in tokens]
    if not isinstance(types, list) or len(types) != len(tokens):
        raise ValueError(f"token_type is not one number for each of {len(tokens)} tokens")
    return types


def _id(fields: dict[str, Any], name: str, default: int | None) -> int | None:
    """The id of a token in a field, or the default if the field is missing or says none."""
    value, count = fields.get(name), len(fields["tokens"])
    if value is None or value in (-1, 0xFFFFFFFF):
        return default if default is None or default < count else None
    if type(value) is not int or not 0 <= value < count:
        raise ValueError(f"{name} is {value!r}, expected the id of one of {count} tokens")
    return value


def _flag(fields: dict[str, Any], name: str, default: bool) -> bool:
    """The bool in a field, or the default if the field is missing."""
    value = fields.get(name, default)
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}, expected true or false")
    return value


def _byte_level(fields: dict[str, Any]) -> "Tokenizer":
    """Byte-level BPE with the splits that the field `pre` names; sets the default of BOS."""
    pre = fields.get("pre", "default")
    if not isinstance(fields.get("merges"), list):
        raise ValueError("byte-level BPE has no list of merges")
    vocabulary = {token: i for i, token in enumerate(fields["tokens"])}
    merges = [tuple(merge.split(" ")) for merge in fields["merges"]]
    fields["default_bos"] = pre in _LLAMA3, None
    return byte_level(vocabulary, merges, pre, whole_words=pre in _LLAMA3)


def byte_level(
    vocabulary: dict[str, int],
    merges: list[tuple[str, str]],
    pre: str,
    *,
    whole_words: bool = False,
    prefix: bool = False,
) -> "Tokenizer":
    """Byte-level BPE with the splits of text that llama.cpp calls `pre`.

    With `whole_words` a word that is a token is not made by merges; with `prefix` there is a space
    before a text.

    Raises:
        ValueError: `pre` is unknown.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=whole_words))
    if pre in _GPT2:
        splits = []
    elif pre in _DIGITS:
        splits = [pre_tokenizers.Digits(individual_digits=True)]
    elif pre in _PATTERNS:
        splits = [pre_tokenizers.Split(Regex(_PATTERNS[pre]), "isolated")]
    elif pre == "default":
        splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in _DEFAULT]
    else:
        raise ValueError(f"pre-tokenizer {pre!r} is unknown; put a tokenizer.json beside the file")
    by_words = pre in _GPT2 or pre in _DIGITS
    last = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=by_words)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, last])
    if pre in _QWEN2:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def byte_letters() -> list[str]:
    """The letter that stands for each byte in byte-level BPE (Radford et al., 2019).

    Example:
        >>> byte_letters()[0x20], byte_letters()[0x41]
        ('Ġ', 'A')
    """
    shown = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = iter(range(256, 512))
    return [chr(byte if byte in shown else next(hidden)) for byte in range(256)]


def sentencepiece_bpe(fields: dict[str, Any]) -> "Tokenizer":
    """SentencePiece BPE: two tokens merge if together they are a token, the highest score first.

    `fields["tokens"]` becomes the vocabulary of the result. BOS is 1 unless a field names it.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers

    tokens, scores = list(fields["tokens"]), fields.get("scores")
    longest = max(map(len, tokens), default=0)
    if longest > _LONGEST_TOKEN:
        raise ValueError(f"a token has {longest} characters, expected at most {_LONGEST_TOKEN}")
    if fields["gemma"]:  # Gemma stores runs of spaces as spaces and merges by token id
        tokens = ["▁" * len(t) if t and not t.strip(" ") else t for t in tokens]
        scores = range(0, -len(tokens), -1)
    if scores is None or len(scores) != len(tokens):
        raise ValueError(f"scores is not one number for each of {len(tokens)} tokens")
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
    model = models.BPE(
        vocabulary,
        merges,
        unk_token=tokens[_id(fields, "unknown_token_id", 0)],
        fuse_unk=True,
        byte_fallback=fields.get("byte_fallback", True),
    )
    tokenizer = Tokenizer(model)
    prefix = _flag(fields, "add_space_prefix", not fields["gemma"])
    spaces = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([*[normalizers.Prepend("▁")] * prefix, spaces])
    strip = [decoders.Strip(" ", 1, 0)] * prefix
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    fields["tokens"], fields["default_bos"] = tokens, (True, 1)
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
    unknown = _id(fields, "unknown_token_id", vocabulary.get("[UNK]", 100))
    separator = _id(fields, "seperator_token_id", vocabulary.get("[SEP]", 102))  # ggml's spelling
    first = _id(fields, "cls_token_id", vocabulary.get("[CLS]", 101))
    if None in (unknown, separator, first):
        raise ValueError("WordPiece lacks [UNK], [CLS] or [SEP], and no field names another token")
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=tokens[unknown]))
    lowercase = all(t == t.lower() for t, kind in zip(tokens, fields["types"]) if kind == _NORMAL)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special_tokens = [(tokens[i], i) for i in (separator, first)]
    tokenizer.post_processor = processors.BertProcessing(*special_tokens)
    fields["tokens"] = tokens
    return tokenizer


def _add_special_tokens(tokenizer: "Tokenizer", fields: dict[str, Any]) -> None:
    """Adds the control and user tokens, and BOS and EOS round the text if the fields want them."""
    add_typed_tokens(tokenizer, fields)
    if "default_bos" not in fields:  # WordPiece has [CLS] and [SEP]
        return
    has_bos, bos = fields["default_bos"]
    has_bos, bos = _flag(fields, "add_bos_token", has_bos), _id(fields, "bos_token_id", bos)
    has_eos, eos = _flag(fields, "add_eos_token", False), _id(fields, "eos_token_id", None)
    before = [fields["tokens"][bos]] if has_bos and bos is not None else []
    after = [fields["tokens"][eos]] if has_eos and eos is not None else []
    surround(tokenizer, before, after)


def add_typed_tokens(tokenizer: "Tokenizer", fields: dict[str, Any]) -> None:
    """Adds the tokens that are found in a text before it is cut: control and user tokens."""
    from tokenizers import AddedToken

    for token, kind in zip(fields["tokens"], fields["types"]):
        if kind == _CONTROL:
            tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True)])
        elif kind == _USER:
            tokenizer.add_tokens([AddedToken(token, normalized=False)])
