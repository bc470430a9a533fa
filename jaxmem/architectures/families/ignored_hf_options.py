"""Options of a config.json that change nothing, and limits of those that every family reads."""

from ...io.json_fields import JsonFields

MOST_LAYERS = 10_000  # far above every published model; more would only fill memory with names
UNLIMITED = 2**20  # tokens that a model without a table of positions takes

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
