"""The tensors of a checkpoint, by name: parameters made of them, a head of its own, unread ones."""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..architectures.weights.weight_map import WeightMap
from ..core.lazy import Lazy
from ..core.warning import warn
from .model import family

# Before a name in a checkpoint that was written from a model with a head on top, in parallel, or
# compiled.
_PREFIXES = ("model.", "transformer.", "bert.", "gpt_neox.", "language_model.")
_PREFIXES += ("roberta.", "electra.", "distilbert.", "albert.", "mpnet.", "esm.")
_PREFIXES += ("nomic_bert.", "deberta.", "module.", "_orig_mod.", "vit.", "dinov2.")
_PREFIXES += ("wav2vec2.", "backbone.", "rwkv.", "resnet.", "convnext.")
_OLD_ENDS = {"gamma": "weight", "beta": "bias"}  # TensorFlow's names of a layer norm's parameters
_EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
_HEADS = ("embed_out", "proj_out")  # of GPT-NeoX in older files, and of Whisper
_HEAD, _MOST_NAMES = "lm_head.weight", 5

# Tensors that hold constants, BERT's pooler, which the hidden states do not need, the last linear
# of a masked language model, which is the embedding, and what replaces masked patches and frames in
# training. A ConvNeXt without a head has the norm of one.
_HARMLESS = re.compile(
    r".*rotary_emb(eddings)?\.inv_freq|contact_head\..*|(h|layers)\.\d+\.attn?(ention)?\.((attention\.)?(masked_)?bias|causal_mask)"
    r"|pooler\.(dense\.)?(weight|bias)|((text|vision)_model\.)?embeddings\.(position_ids|mask_token)|masked_spec_embed"
    r"|.*\.num_batches_tracked|layernorm\.(weight|bias)"
    r"|((cls\.)?predictions\.|lm_head\.|)decoder\.(weight|bias)|(generator_lm_head|vocab_projector)\.weight"
    r"|(de|en)coder\.embed_positions\.weights?"
)
# {what the names of tensors match: what they say of a checkpoint that lacks others}
_OTHER_FORMS = {
    r".*\.switch_mlp\..*": "experts in one tensor, as MLX writes them, are not read",
    r".*(\.qweight|_blocks)": "these are codes, and config.json must say in quantization_config "
    "what they stand for, as quantize_config.json does in older checkpoints",
}
_LAYER = re.compile(r"(?:(?:(?:de|en)coder\.)?layers?|h|blocks)\.(\d+)\.")


def bare_name(name: str) -> str:
    """A tensor's name without prefixes such as `model.`, and with today's word for an old one.

    Example:
        >>> bare_name("bert.embeddings.LayerNorm.gamma")
        'embeddings.LayerNorm.weight'
    """
    while name.startswith(_PREFIXES):
        name = name.split(".", 1)[1]
    stem, _, end = name.rpartition(".")
    stem = "lm_head" if stem in _HEADS else stem
    return f"{stem}.{_OLD_ENDS.get(end, end)}" if stem else name


def own_dtype(tensors: dict[str, Lazy]) -> np.dtype:
    """bfloat16 if all floating-point tensors are, else float32."""
    floats = {x.dtype for x in tensors.values() if jnp.issubdtype(x.dtype, jnp.floating)}
    bfloat16 = np.dtype(jnp.bfloat16)
    return bfloat16 if floats == {bfloat16} else np.dtype("float32")


def assemble(
    weight_maps: dict[str, WeightMap], tensors: dict[str, Lazy], dtype: Any, source: Any
) -> dict:
    """The parameter tree of lazy leaves, made from the tensors of a checkpoint by name.

    Raises:
        ValueError: a tensor is missing, is there twice, has another shape, or holds no
            floating-point numbers; the message names it and `source`.
    """
    names: dict[str, list[str]] = {}
    for name in tensors:
        names.setdefault(bare_name(name), []).append(name)
    leaves = {}
    for path, weight_map in weight_maps.items():
        by_name = {}
        for name in weight_map.names:
            in_file = names.get(bare_name(name), [])
            if len(in_file) != 1:
                raise ValueError(f"{source} {_miscounted(name, in_file, tensors)}")
            tensor = tensors[in_file[0]]
            _check_numbers(in_file[0], tensors, source)
            shape = weight_map.fn(np.broadcast_to(np.float32(0), tensor.shape)).shape
            if shape != weight_map.array_shape:
                expected = weight_map.array_shape
                raise ValueError(f"{source}: {name} makes {shape}, {path} expects {expected}")
            by_name[name] = tensor
        read = functools.partial(_read_layer, weight_map, by_name)
        leaves[path] = Lazy(weight_map.shape, dtype, read, weight_map.stacked)
    return nested(leaves)


def _read_layer(weight_map: WeightMap, by_name: dict[str, Lazy], i: int | None) -> np.ndarray:
    """Layer `i` of a parameter; `by_name` has its tensors."""
    parts = [weight_map.fn(by_name[name].read(None)) for name in weight_map.layer_names(i)]
    return np.stack(parts) if weight_map.parts else parts[0]


def with_one_embedding(config: Any, tensors: dict[str, Lazy], source: Any) -> dict[str, Lazy]:
    """The tensors of an encoder-decoder, whose embedding may have the name of any of its users.

    Raises:
        ValueError: the checkpoint holds more than one, and they differ; the message names two.
    """
    if config.family != "seq2seq":
        return tensors
    expected = bare_name(family(config).weights(config)["embed/embedding"].names[0])
    named = {bare_name(n): n for n in tensors if bare_name(n) in (expected, *_EMBEDDINGS)}
    if not named:
        return tensors
    chosen = named.get(expected, min(named.values()))
    embedding = tensors[chosen]
    for name in named.values():
        if name != chosen and not _equal(tensors[name], embedding):
            raise ValueError(
                f"{source}: {name} differs from {chosen}, expected one embedding for the source "
                "and the text"
            )
    rest = {name: tensor for name, tensor in tensors.items() if name not in named.values()}
    return rest | {expected: embedding}


def with_its_head(config: Any, tensors: dict[str, Lazy]) -> Any:
    """The configuration, untied if the checkpoint has a head that differs from the embedding.

    Some checkpoints say that the embedding is the head, and hold another head: it is used. Both are
    read and compared only where a checkpoint that says so holds a head.
    """
    if not getattr(config, "tied", False):
        return config
    by_name = {bare_name(name): tensor for name, tensor in tensors.items()}
    embedding = bare_name(family(config).weights(config)["embed/embedding"].names[0])
    head, embed = by_name.get(_HEAD), by_name.get(embedding)
    if head is None or embed is None:
        return config
    return config if _equal(head, embed) else dataclasses.replace(config, tied=False)


def without_missing_head(config: Any, tensors: dict[str, Lazy], config_file: pathlib.Path) -> Any:
    """The configuration without the head that a config.json names, if no tensor of it is there.

    A warning says that the output is hidden states. There is none in a folder of
    sentence-transformers, whose config.json names the class that its encoder was trained in.
    """
    if not getattr(config, "head", "") or not hasattr(config, "without_head"):
        return config
    names = lambda c: {bare_name(n) for x in family(c).weights(c).values() for n in x.names}
    bare = config.without_head()
    if (names(config) - names(bare)) & {bare_name(name) for name in tensors}:
        return config
    if not config_file.with_name("modules.json").is_file():
        warn(
            f"{config_file} names a head in architectures, and the checkpoint holds no tensor of "
            "it: the output of the model is hidden states"
        )
    return bare


def warn_of_unread(
    config: Any, weight_maps: dict[str, WeightMap], tensors: dict[str, Lazy], source: Any
) -> None:
    """Warns of tensors that no parameter is made of: layers past the last, heads, other parts."""
    read = {bare_name(name) for weight_map in weight_maps.values() for name in weight_map.names}
    read |= {_HEAD} if getattr(config, "tied", False) else set()
    rest = {name: bare_name(name) for name in tensors}
    rest = {n: b for n, b in rest.items() if b not in read and not _HARMLESS.fullmatch(b)}
    layer = lambda bare: int(match[1]) if (match := _LAYER.match(bare)) else -1
    more = sorted({layer(bare) for bare in rest.values() if layer(bare) >= config.layers})
    others = [name for name, bare in rest.items() if layer(bare) < config.layers]
    parts = []
    if more:
        parts.append(
            f"layers {more[0]} to {more[-1]}, as its configuration has {config.layers} layers"
        )
    if others:
        shown = ", ".join(others[:_MOST_NAMES])
        parts.append(f"{shown}{', ...' if len(others) > _MOST_NAMES else ''}")
    if parts:
        warn(
            f"{source} holds tensors that the model does not use ({len(rest)}): "
            f"{'; '.join(parts)}. What they compute, such as a head, is left out"
        )


def _equal(first: Lazy, second: Lazy) -> bool:
    """Whether two tensors hold the same numbers."""
    return first.shape == second.shape and np.array_equal(first.load(), second.load())


def nested(leaves: dict[str, Any]) -> dict:
    """{path with slashes: leaf} as nested dicts."""
    tree: dict = {}
    for path, leaf in leaves.items():
        *parents, last = path.split("/")
        at = tree
        for parent in parents:
            at = at.setdefault(parent, {})
        at[last] = leaf
    return tree


def _miscounted(name: str, in_file: list[str], tensors: Iterable[str]) -> str:
    """What is wrong with the number of tensors that have a name."""
    if in_file:
        return f"has {' and '.join(in_file)}, which are both read as {name}; remove all but one"
    for pattern, advice in _OTHER_FORMS.items():
        if other := next((x for x in tensors if re.fullmatch(pattern, x)), None):
            return f"has no tensor {name}, and has {other}: {advice}"
    head = "; if the embedding is the head, its config.json must set tie_word_embeddings to true"
    return f"has no tensor {name}{head if bare_name(name) == _HEAD else ''}"


def _check_numbers(name: str, tensors: dict[str, Lazy], source: Any) -> None:
    """Refuses a tensor of codes, which are weights only together with their scales."""
    dtype = np.dtype(tensors[name].dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"{source}: {name} holds {dtype}, expected floating-point numbers; if these are codes, "
            "config.json must say in quantization_config what they stand for"
        )
    scales = [f"{name}{end}" for end in ("_scale", "_scale_inv") if f"{name}{end}" in tensors]
    if scales:
        raise ValueError(
            f"{source}: {name} is to be multiplied by {scales[0]}, and config.json has no "
            "quantization_config that says how; load the checkpoint in floating point"
        )
