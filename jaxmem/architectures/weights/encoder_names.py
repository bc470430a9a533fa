"""The names of the tensors of a Hugging Face checkpoint, for each family of encoders.

`base` comes before the names of all tensors but those of a head, if there is a head.
"""

from .speech_names import SPEECH_NAMES
from .vision_names import VISION_NAMES

_BERT = {
    "base": "bert.",
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
    "sequence/dense": "bert.pooler.dense",
    "sequence/out": "classifier",
    "tokens/out": "classifier",
    "span/out": "qa_outputs",
}
_IN_CLASSIFIER = {"sequence/dense": "classifier.dense", "sequence/out": "classifier.out_proj"}
_ROBERTA = (
    _BERT
    | _IN_CLASSIFIER
    | {"base": "roberta."}
    | {"masked_lm/dense": "lm_head.dense", "masked_lm/norm": "lm_head.layer_norm"}
    | {"masked_lm/bias": "lm_head.bias"}
)
_HEADS = ("masked_lm", "sequence", "tokens", "span")
# {Config.tensor_names: {path of a module: its name in the checkpoint}}
NAMES = {
    **VISION_NAMES,
    **SPEECH_NAMES,
    "bert": _BERT,
    "roberta": _ROBERTA,
    "mpnet": _ROBERTA
    | {"base": "mpnet."}
    | {f"attn/{x}": f"attention.attn.{x}" for x in "qkv"}
    | {"attn/out": "attention.attn.o", "attn_norm": "attention.LayerNorm"}
    | {"distances": "encoder.relative_attention_bias"},
    "esm": _ROBERTA
    | {"base": "esm."}
    | {"embed_norm": "embeddings.layer_norm", "final_norm": "encoder.emb_layer_norm_after"}
    | {"attn_norm": "attention.LayerNorm", "mlp_norm": "LayerNorm"},
    "albert": _BERT
    | {"base": "albert."}
    | {"embed_proj": "encoder.embedding_hidden_mapping_in"}
    | {"layer": "encoder.albert_layer_groups.0.albert_layers.0."}
    | {f"attn/{x[0]}": f"attention.{x}" for x in ("query", "key", "value")}
    | {"attn/out": "attention.dense", "attn_norm": "attention.LayerNorm"}
    | {"mlp/up": "ffn", "mlp/down": "ffn_output", "mlp_norm": "full_layer_layer_norm"}
    | {"masked_lm/dense": "predictions.dense", "masked_lm/norm": "predictions.LayerNorm"}
    | {"masked_lm/bias": "predictions.bias", "sequence/dense": "albert.pooler"},
    "deberta_v2": _BERT
    | {"base": "deberta.", "sequence/dense": "pooler.dense"}
    | {f"attn/{x[0]}": f"attention.self.{x}_proj" for x in ("query", "key", "value")}
    | {"distances": "encoder.rel_embeddings", "distances_norm": "encoder.LayerNorm"},
    "nomic_bert": _BERT
    | {"base": "nomic_bert.", "sequence/dense": "nomic_bert.pooler.dense"}
    | {"embed_norm": "emb_ln", "layer": "encoder.layers.{}.", "attn/out": "attn.out_proj"}
    | {f"attn/{x}": "attn.Wqkv" for x in "qkv"}
    | {"mlp/gate": "mlp.fc12", "mlp/up": "mlp.fc11", "mlp/down": "mlp.fc2"}
    | {"attn_norm": "norm1", "mlp_norm": "norm2"}
    | {"masked_lm/norm": "cls.predictions.transform.layer_norm"},
    "modernbert": _BERT
    | {"base": "model."}
    | {"embed": "embeddings.tok_embeddings", "embed_norm": "embeddings.norm"}
    | {"layer": "layers.{}.", "attn/out": "attn.Wo", "mlp/down": "mlp.Wo"}
    | {f"attn/{x}": "attn.Wqkv" for x in "qkv"}
    | {"mlp/gate": "mlp.Wi", "mlp/up": "mlp.Wi"}
    | {x: x for x in ("attn_norm", "mlp_norm", "final_norm")}
    | {f"{head}/dense": "head.dense" for head in _HEADS}
    | {f"{head}/norm": "head.norm" for head in _HEADS}
    | {"masked_lm/bias": "decoder.bias", "span/out": "classifier"},
    "electra": _BERT
    | _IN_CLASSIFIER
    | {"base": "electra."}
    | {"embed_proj": "embeddings_project", "masked_lm/bias": "generator_lm_head.bias"}
    | {"masked_lm/dense": "generator_predictions.dense"}
    | {"masked_lm/norm": "generator_predictions.LayerNorm"},
    "distilbert": _BERT
    | {"base": "distilbert."}
    | {f"attn/{x}": f"attention.{x}_lin" for x in ("q", "k", "v", "out")}
    | {"layer": "transformer.layer.{}.", "attn_norm": "sa_layer_norm"}
    | {"mlp/up": "ffn.lin1", "mlp/down": "ffn.lin2", "mlp_norm": "output_layer_norm"}
    | {"masked_lm/dense": "vocab_transform", "masked_lm/norm": "vocab_layer_norm"}
    | {"masked_lm/bias": "vocab_projector.bias", "sequence/dense": "pre_classifier"},
}
