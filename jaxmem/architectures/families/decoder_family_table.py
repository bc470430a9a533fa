"""FAMILIES: the table of all families of decoders, which reads the config.json of each."""

from typing import Any

from ...io.json_fields import JsonFields
from .gpt_families import GPT_FAMILIES
from .hybrid_families import HYBRID_FAMILIES
from .ignored_hf_options import refuse_unread_options
from .llama_like_families import ROTARY_FAMILIES
from .mixture_families import MIXTURE_FAMILIES
from .recurrent_families import RECURRENT_FAMILIES

FAMILIES = ROTARY_FAMILIES | GPT_FAMILIES | MIXTURE_FAMILIES | RECURRENT_FAMILIES
FAMILIES |= HYBRID_FAMILIES

_TENSOR_NAMES = {  # of families whose checkpoints do not have the names of the family itself
    **dict.fromkeys(("mistral", "ministral3", "qwen2", "qwen3", "gemma", "granite"), "llama"),
    **dict.fromkeys(("olmo", "cohere", "cohere2", "nemotron", "smollm3", "helium"), "llama"),
    **dict.fromkeys(("gemma2", "gemma3_text", "arcee", "seed_oss"), "llama"),
    "glm": "glm4",
    **dict.fromkeys(("qwen2_moe", "qwen3_moe", "olmoe"), "qwen_moe"),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3"), "deepseek"),
    "phimoe": "mixtral",
    **dict.fromkeys(("olmo2", "olmo3", "exaone4"), "post_norms"),
}
_OTHER_PARTS = "|".join(  # beside the text part of a multimodal config.json
    (
        r"text_config|model_type|tie_word_embeddings|ignore_index|is_encoder_decoder",
        r"(vision|audio|image|video|mm|multimodal|projector|boi|eoi|boa|eoa)_.*|.*_token_index",
    )
)


def from_hf(hf: dict) -> dict[str, Any]:
    """The fields of a Config from a checkpoint's `config.json`, of transformers 4 or 5.

    Raises:
        ValueError: `hf` lacks a size, has a value of the wrong type, or has a model type or an
            option that decoder.py does not compute. Every option is read, known not to change the
            function, or refused.
    """
    whole = JsonFields(hf)
    is_part = "text_config" in whole
    text = whole.object("text_config").data if is_part else hf
    kind = JsonFields(text).text("model_type", among=FAMILIES)
    read, defaults = FAMILIES[kind]
    fields = JsonFields(defaults | text)
    fields.ignore("model_type")
    fields.expect("is_causal", True)
    names = _TENSOR_NAMES.get(kind, kind)
    config = {"tensor_names": names} | read(fields)
    config |= dict(
        tied=fields.boolean("tie_word_embeddings", False),
        bos=fields.integer("bos_token_id", whole.integer("bos_token_id", None, least=0), least=0),
        eos=tuple(
            dict.fromkeys((*fields.integers("eos_token_id"), *whole.integers("eos_token_id")))
        ),
    )
    config["local_scaled"] = bool(config.get("local") and config.get("local_scaled"))
    refuse_unread_options(fields)
    if is_part:
        refuse_unread_options(JsonFields(hf), _OTHER_PARTS)
    return config
