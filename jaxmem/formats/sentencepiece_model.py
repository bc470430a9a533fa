"""The vocabulary in a SentencePiece model file, which is a message of protocol buffers.

Kudo and Richardson, 2018. The fields of a GGUF file say the same of such a vocabulary, by the same
numbers for the types of pieces.
"""

import pathlib
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from . import tokenizers

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_UNIGRAM, _BPE = 1, 2
_PIECE, _TRAINER, _NORMALIZER = 1, 2, 3  # fields of the file
_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5  # types on the wire


def from_sentencepiece(path: pathlib.Path, *, fairseq: bool = False) -> "Tokenizer":
    """The tokenizer of a SentencePiece model of BPE or Unigram; it adds no token to a text.

    With `fairseq` the ids are those of XLM-RoBERTa: <s>, <pad>, </s> and <unk> come first, then the
    file's pieces but for its first three, and <mask> is last.

    Raises:
        ValueError: the file is damaged, or its model is of another type.
        ImportError: the `tokenizers` package is missing.
    """
    try:
        return _built(path.read_bytes(), fairseq)
    except ImportError:
        raise
    except Exception as error:  # the one class that the package tokenizers raises
        raise ValueError(f"{path} is no SentencePiece model that is read: {error!r}") from error


def _built(data: bytes, fairseq: bool) -> "Tokenizer":
    """The tokenizer of the file whose bytes are `data`."""
    tokens, scores, types = [], [], []
    trainer, normalizer = {}, {}
    for field, value in _message(data):
        if field == _PIECE:
            piece = dict(_message(value))
            tokens.append(piece[1].decode())
            scores.append(struct.unpack("<f", piece.get(2, bytes(4)))[0])
            types.append(piece.get(3, 1))
        elif field == _TRAINER:
            trainer = dict(_message(value))
        elif field == _NORMALIZER:
            normalizer = dict(_message(value))
    if fairseq:
        tokens = ["<s>", "<pad>", "</s>", "<unk>", *tokens[3:], "<mask>"]
        scores, types = [0.0] * 4 + scores[3:] + [0.0], [3, 3, 3, 2, *types[3:], 3]
    kind = trainer.get(3, _UNIGRAM)
    if kind not in (_UNIGRAM, _BPE):
        raise ValueError(f"its model is of type {kind}, expected 1 (Unigram) or 2 (BPE)")
    if not normalizer.get(5, 1):
        raise ValueError("its spaces are not written as ▁")
    fields = {"tokens": tokens, "scores": scores, "types": types, "gemma": False}
    fields |= {"add_space_prefix": bool(normalizer.get(3, 1)), "unknown_token_id": types.index(2)}
    fields["byte_fallback"] = bool(trainer.get(35, 0))
    build = tokenizers.sentencepiece_bpe if kind == _BPE else _unigram
    tokenizer = build(fields)
    _normalize(tokenizer, normalizer)
    tokenizers.add_typed_tokens(tokenizer, fields)
    return tokenizer


def _unigram(fields: dict[str, Any]) -> "Tokenizer":
    """The most likely pieces, of all ways to cut a text (Kudo, 2018)."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    pieces = list(zip(fields["tokens"], fields["scores"]))
    model = models.Unigram(pieces, fields["unknown_token_id"], fields["byte_fallback"])
    tokenizer, prefix = Tokenizer(model), fields["add_space_prefix"]
    tokenizer.normalizer = normalizers.Sequence([])
    scheme = "always" if prefix else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    strip = [decoders.Strip(" ", 1, 0)] * prefix
    replace = decoders.Replace("▁", " ")
    tokenizer.decoder = decoders.Sequence(
        [replace, decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


def _normalize(tokenizer: "Tokenizer", normalizer: dict[int, Any]) -> None:
    """Puts the replacements of characters, and of runs of spaces, before the others."""
    from tokenizers import Regex, normalizers

    steps = [normalizers.Precompiled(normalizer[2])] if normalizer.get(2) else []
    if normalizer.get(4, 1):
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if steps:
        tokenizer.normalizer = normalizers.Sequence([*steps, tokenizer.normalizer])


def _message(data: bytes) -> Iterator[tuple[int, Any]]:
    """The (number, value) of each field of a message; numbers of four bytes are bytes.

    Example:
        >>> list(_message(bytes([0x08, 0x96, 0x01, 0x12, 0x02, 0x68, 0x69])))
        [(1, 150), (2, b'hi')]
    """
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
        elif kind in (_BYTES, _FOUR_BYTES, _EIGHT_BYTES):
            size, at = _varint(data, at) if kind == _BYTES else (4 if kind == 5 else 8, at)
            value, at = data[at : at + size], at + size
            if len(value) != size:
                raise ValueError(f"a field ends at byte {at} of {len(data)}")
        else:
            raise ValueError(f"type {kind} is none of protocol buffers")
        yield key >> 3, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """(the number of seven bits a byte at `at`, the byte after it)."""
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError(f"a number has no end at byte {at}")
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 128:
            return value, at
