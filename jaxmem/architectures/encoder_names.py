"""The names of the tensors of a Hugging Face checkpoint, for each family of encoders.

The prefix of a model with a head, such as `bert.`, is left out.
"""

_BERT = {
    "embed": "embeddings.word_embeddings",
    "positions": "embeddings.position_embeddings",
    "types": "embeddings.token_type_embeddings",
    "embed_norm": "embeddings.LayerNorm",
    "layer": "encoder.layer.{}.",
    "attn/q": "attention.self.query",
    "attn/k": "attention.self.key",
    "attn/v": "attention.self.value",
    "attn/out": "attention.output.dense",
    "attn_norm": "attention.output.LayerNorm",
    "mlp/up": "intermediate.dense",
    "mlp/down": "output.dense",
    "mlp_norm": "output.LayerNorm",
    "masked_lm/dense": "cls.predictions.transform.dense",
    "masked_lm/norm": "cls.predictions.transform.LayerNorm",
    "masked_lm/bias": "cls.predictions.bias",
    "sequence/dense": "pooler.dense",
    "sequence/out": "classifier",
    "tokens/out": "classifier",
    "span/out": "qa_outputs",
}
_IN_CLASSIFIER = {"sequence/dense": "classifier.dense", "sequence/out": "classifier.out_proj"}
# {Config.tensor_names: {path of a module: its name in the checkpoint}}
NAMES = {
    "bert": _BERT,
    "roberta": _BERT
    | _IN_CLASSIFIER
    | {"masked_lm/dense": "lm_head.dense", "masked_lm/norm": "lm_head.layer_norm"}
    | {"masked_lm/bias": "lm_head.bias"},
    "electra": _BERT
    | _IN_CLASSIFIER
    | {"embed_proj": "embeddings_project", "masked_lm/bias": "generator_lm_head.bias"}
    | {"masked_lm/dense": "generator_predictions.dense"}
    | {"masked_lm/norm": "generator_predictions.LayerNorm"},
    "distilbert": _BERT
    | {f"attn/{x}": f"attention.{x}_lin" for x in ("q", "k", "v", "out")}
    | {"layer": "transformer.layer.{}.", "attn_norm": "sa_layer_norm"}
    | {"mlp/up": "ffn.lin1", "mlp/down": "ffn.lin2", "mlp_norm": "output_layer_norm"}
    | {"masked_lm/dense": "vocab_transform", "masked_lm/norm": "vocab_layer_norm"}
    | {"masked_lm/bias": "vocab_projector.bias", "sequence/dense": "pre_classifier"},
}
