"""The Whisper in a CTranslate2 file, by the names of transformers: its config.json and tensors."""

import pathlib
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.lazy import Lazy
from ..formats.ctranslate2 import Ctranslate2, is_ctranslate2
from ..io.json_fields import JsonFields

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_KIND, _REVISION = "WhisperSpec", 3
_GELU = 3  # the number of this activation
_ENGLISH = 51_864  # tokens, or less; a multilingual model has more (Radford et al., 2022)
_START, _END = "<|startoftranscript|>", "<|endoftext|>"
_TRANSCRIBE, _NO_TIMES = "<|transcribe|>", "<|notimestamps|>"
# {a part of a layer: the tensors of transformers that it joins}
_ENCODER_PARTS = {
    "self_attention/linear_0": [f"self_attn.{x}_proj" for x in "qkv"],
    "self_attention/linear_1": ["self_attn.out_proj"],
    "self_attention/layer_norm": ["self_attn_layer_norm"],
    "ffn/linear_0": ["fc1"],
    "ffn/linear_1": ["fc2"],
    "ffn/layer_norm": ["final_layer_norm"],
}
_DECODER_PARTS = _ENCODER_PARTS | {
    "attention/linear_0": ["encoder_attn.q_proj"],
    "attention/linear_1": [f"encoder_attn.{x}_proj" for x in "kv"],
    "attention/linear_2": ["encoder_attn.out_proj"],
    "attention/layer_norm": ["encoder_attn_layer_norm"],
}
_ENDS = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"}
_HEAD, _EMBEDDING = "decoder/projection/weight", "decoder/embeddings/weight"


def file_in(folder: pathlib.Path) -> pathlib.Path | None:
    """The CTranslate2 file in a folder, which it has in place of safetensors; or None."""
    path = folder / "model.bin"
    names = (path.with_name(f"model.safetensors{end}") for end in ("", ".index.json"))
    if not path.is_file() or any(name.is_file() for name in names):
        return None
    return path if is_ctranslate2(path) else None


def whisper(
    file: Ctranslate2, fields: JsonFields, tokenizer: "Tokenizer | None"
) -> tuple[dict[str, Any], dict[str, Lazy]]:
    """The config.json and the tensors of a Whisper as transformers writes them.

    `fields` are those of the config.json beside the file, which names suppressed tokens. Sizes are
    those of the tensors; the tokens that a text begins and ends with are the tokenizer's.

    Raises:
        ValueError: the file holds another kind of model, an option or a tensor that is not
            computed, or lacks one; the tokenizer is missing, or lacks a token.
    """
    if file.kind != _KIND or file.revision > _REVISION:
        raise ValueError(
            f"{file.path} holds a {file.kind} of revision {file.revision}, expected a {_KIND} of "
            f"at most {_REVISION}"
        )
    options = JsonFields(file.options, f"{file.path}: ")
    tensors, layers = _renamed(file)
    vocab, width = _shape(file, _EMBEDDING, 2)
    _, mels, _ = _shape(file, "encoder/conv1/weight", 3)
    config: dict[str, Any] = {"model_type": "whisper", "is_encoder_decoder": True}
    config |= {"vocab_size": vocab, "d_model": width, "num_mel_bins": mels}
    for stack, positions in (
        ("encoder", "max_source_positions"),
        ("decoder", "max_target_positions"),
    ):
        config[f"{stack}_layers"] = layers[stack]
        config[f"{stack}_attention_heads"] = options.integer(f"{stack}/num_heads")
        config[f"{stack}_ffn_dim"] = tensors[f"model.{stack}.layers.0.fc1.weight"].shape[0]
        config[positions] = tensors[f"model.{stack}.embed_positions.weight"].shape[0]
    _check_options(options)
    config |= _tokens(file, fields, tokenizer, vocab)
    return config | {"activation_function": "gelu"}, tensors


def preprocessor(config: dict[str, Any]) -> dict[str, Any]:
    """The preprocessor_config.json beside a config.json that `whisper` made.

    Example:
        >>> preprocessor({"num_mel_bins": 128})["feature_size"]
        128
    """
    return {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": config["num_mel_bins"],
    }


def _shape(file: Ctranslate2, name: str, rank: int) -> tuple[int, ...]:
    """The shape of a tensor of so many axes."""
    shape = file.tensors[name].shape
    if len(shape) != rank:
        raise ValueError(f"{file.path}: {name} has shape {shape}, expected {rank} axes")
    return shape


def _check_options(options: JsonFields) -> None:
    """Refuses options of the decoder that are not computed here."""
    options.expect("decoder/activation", _GELU)
    options.expect("decoder/pre_norm", 1)
    options.ignore("decoder/alignment_layer", "decoder/alignment_heads")  # for times of words
    options.ignore("decoder/alibi_use_positive_positions")  # without decoder/alibi
    options.refuse_unread()


def _tokens(
    file: Ctranslate2, fields: JsonFields, tokenizer: "Tokenizer | None", vocab: int
) -> dict[str, Any]:
    """The fields of a config.json that name tokens."""
    suppressed, first = fields.integers("suppress_ids"), fields.integers("suppress_ids_begin")
    fields.ignore("lang_ids", "alignment_heads", "multi_query_attention")
    fields.refuse_unread()
    if tokenizer is None:
        raise ValueError(f"{file.path} has no tokenizer.json beside it, which names its tokens")
    prefix = (_NO_TIMES,) if vocab <= _ENGLISH else (_TRANSCRIBE, _NO_TIMES)
    ids = {token: tokenizer.token_to_id(token) for token in (_START, _END, *prefix)}
    missing = [token for token, i in ids.items() if i is None]
    if missing:
        raise ValueError(f"the tokenizer.json beside {file.path} has no token {missing[0]}")
    language = [] if vocab <= _ENGLISH else [None]  # which the model chooses
    forced = [*language, *(ids[token] for token in prefix)]
    return {
        "decoder_start_token_id": ids[_START],
        "eos_token_id": ids[_END],
        "forced_decoder_ids": [[i, token] for i, token in enumerate(forced, 1)],
        "suppress_tokens": list(suppressed),
        "begin_suppress_tokens": list(first),
    }


def _renamed(file: Ctranslate2) -> tuple[dict[str, Lazy], dict[str, int]]:
    """The tensors by the names of transformers, and the number of layers of each stack."""
    if file.aliases.get(_HEAD) != _EMBEDDING:
        raise ValueError(f"{file.path}: {_HEAD} is not {_EMBEDDING}, expected one matrix for both")
    held = {name: tensor for name, tensor in file.tensors.items() if name != _HEAD}
    modules, layers = {"encoder/conv1": ["encoder.conv1"], "encoder/conv2": ["encoder.conv2"]}, {}
    sources = {_EMBEDDING: ["decoder.embed_tokens.weight"]}
    for stack, parts in (("encoder", _ENCODER_PARTS), ("decoder", _DECODER_PARTS)):
        matches = (re.match(rf"{stack}/layer_(\d{{1,6}})/", name) for name in held)
        layers[stack] = len({match[1] for match in matches if match})
        if not layers[stack]:
            raise ValueError(f"{file.path} holds no layer of the {stack}")
        sources[f"{stack}/position_encodings/encodings"] = [f"{stack}.embed_positions.weight"]
        modules[f"{stack}/layer_norm"] = [f"{stack}.layer_norm"]
        for i in range(layers[stack]):
            for part, names in parts.items():
                new = [f"{stack}.layers.{i}.{name}" for name in names]
                modules[f"{stack}/layer_{i}/{part}"] = new
    for old, new in modules.items():
        ends = ("gamma", "beta") if old.endswith("layer_norm") else ("weight", "bias")
        sources |= {f"{old}/{end}": [f"{x}.{_ENDS[end]}" for x in new] for end in ends}
    for name in (*(sources.keys() - held.keys()), *(held.keys() - sources.keys())):
        problem = "holds no" if name in sources else "holds, and nothing here computes,"
        raise ValueError(f"{file.path} {problem} {name}")
    tensors = {}
    for name, new in sources.items():
        tensors |= _split(file, name, [f"model.{x}" for x in new])
    return tensors, layers


def _split(file: Ctranslate2, name: str, new: list[str]) -> dict[str, Lazy]:
    """The equal parts of a tensor's rows; the bias of keys, which is zero, has no parameter."""
    tensor = file.tensors[name]
    rows = tensor.shape[0] // len(new)
    if rows * len(new) != tensor.shape[0]:
        raise ValueError(
            f"{file.path}: {name} has {tensor.shape[0]} rows, expected {len(new)} parts"
        )
    out = {}
    for i, part in enumerate(new):
        cut = lambda w, i=i: w[i * rows : (i + 1) * rows]
        piece = tensor.map(cut, (rows, *tensor.shape[1:]))
        if not part.endswith("k_proj.bias"):
            out[part] = piece
        elif np.any(piece.load()):
            raise ValueError(f"{file.path}: {name} has a bias of keys, expected zeros")
    return out
