"""Checks of the types and sizes in a configuration, and of the options in a config.json."""

import dataclasses
import math
import numbers
import typing
from typing import Any

from ..io.json_fields import JsonFields

MOST_LAYERS = 10_000  # far above every published model; more would only fill memory with names

# Options of a config.json that do not change what a model computes: one pattern for every family.
_HARMLESS = "|".join(
    (
        r"_(?!sliding).*|.*version|architectures|auto_map|(torch_)?dtype|transformers.*",
        r".*dropout.*|.*pdrop|initializer_.*|.*_token_ids?|mask_index|tokenizer.*|.*flash.*",
        r"id2label|label2id|_?num_labels|problem_type|finetuning_task|task_specific_params",
        r"output_.*|return_dict.*|torchscript|gradient_checkpointing|use_cache|use_bfloat16",
        r"chunk_size_feed_forward|pretraining_tp|cache_implementation|.*attn_implementation",
        r"unsloth.*|is_llama_config|neftune.*|quantization_config|model_parallel|prefix",
        r"max_length|min_length|do_sample|early_stopping|num_beams|num_beam_groups|temperature",
        r"top_[kp]|typical_p|.*_penalty|.*no_repeat_ngram_size|bad_words_ids|forced_.*",
        r"num_return_sequences|remove_invalid_values|(begin_)?suppress_tokens",
        r"max_sequence_length|model_max_length|max_seq_length|n_ctx|n_special|line_by_line",
        r"predict_special_tokens|summary_.*|pooler_.*|vocab_pad.*|block_size",
    )
)


def check_types(config: Any) -> None:
    """Refuses a value of another type than its field has, and a number that is not finite.

    Raises:
        TypeError: a field's value has another type.
        ValueError: a number is NaN or infinite.

    Example:
        >>> from jaxmem.architectures.bert import Config
        >>> Config(vocab=64, width="32", ffn=48, layers=2, heads=4)
        Traceback (most recent call last):
        TypeError: width is '32', expected int
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if not _has_type(value, field.type):
            expected = getattr(field.type, "__name__", str(field.type))
            raise TypeError(f"{field.name} is {value!r}, expected {expected}")
        values = value if isinstance(value, tuple | list) else (value,)
        if not all(math.isfinite(x) for x in values if isinstance(x, numbers.Real)):
            raise ValueError(f"{field.name} is {value!r}, expected finite numbers")


def _has_type(value: Any, hint: Any) -> bool:
    """Whether a value has the type of a field; an int passes as a float, a list as a tuple."""
    parts = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        return isinstance(value, tuple | list) and all(_has_type(x, parts[0]) for x in value)
    if parts:
        return any(_has_type(value, part) for part in parts)
    if isinstance(value, bool) or hint is bool:
        return isinstance(value, bool) and hint is bool
    kinds = {int: numbers.Integral, float: numbers.Real}  # NumPy's integers and floats, too
    return isinstance(value, kinds.get(hint, hint))


def check_positive(config: Any, *names: str) -> None:
    """Refuses sizes below 1, more layers than `MOST_LAYERS`, and an `eps` that is no small number.

    Raises:
        ValueError: one of the fields `names` is less than 1, there are too many layers, or `eps`
            is not in [0, 1).
    """
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} is {getattr(config, name)}, expected at least 1")
    if config.layers > MOST_LAYERS:
        raise ValueError(f"layers is {config.layers}, expected at most {MOST_LAYERS}")
    if not 0 <= config.eps < 1:
        raise ValueError(f"eps is {config.eps}, expected at least 0 and below 1")


def check_family(config: Any, expected: str) -> None:
    """Refuses a configuration of another family.

    Raises:
        ValueError: `config.family` is not `expected`.
    """
    if config.family != expected:
        raise ValueError(f"family is {config.family!r}, expected {expected!r}")


def set_head_dim(config: Any) -> None:
    """Sets `head_dim` of a frozen configuration to width / heads where it is 0.

    Raises:
        ValueError: the width does not divide into the heads.
    """
    if not config.head_dim and config.width % config.heads:
        raise ValueError(f"a width of {config.width} does not divide into {config.heads} heads")
    object.__setattr__(config, "head_dim", config.head_dim or config.width // config.heads)


def refuse_unread_options(fields: JsonFields, harmless: str = "") -> None:
    """Refuses the options of a config.json that nothing has read and that may change the function.

    `harmless` is a pattern of more names that do not change it.

    Raises:
        ValueError: such an option is set; the message names it.

    Example:
        >>> refuse_unread_options(JsonFields({"hidden_dropout": 0.1, "alibi": False}))
        >>> refuse_unread_options(JsonFields({"alibi": True}))
        Traceback (most recent call last):
        ValueError: alibi is True, a field that is not known here...
    """
    fields.refuse_unread(f"{_HARMLESS}|{harmless}" if harmless else _HARMLESS)
