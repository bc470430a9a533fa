"""Writes encoders/*.npz: tiny encoders, and what transformers computes with them.

Wants `pip install torch transformers` (made with torch 2.13, transformers 5.24); the tests do not.
Each file holds the `config.json` and the tensors' names and shapes as text, ids, a mask, segment
types where there are some, and the f32 hidden states or logits. Script and test draw the weights
alike, from names and shapes.
"""

import json
import pathlib
import sys
import tempfile

import numpy as np
import torch
import transformers as tf
from safetensors.numpy import load_file, save_file

sys.path.append(str(pathlib.Path(__file__).parents[1]))
from drawn_weights import drawn

FOLDER = pathlib.Path(__file__).with_name("encoders")
LENGTHS = (14, 9)  # of the texts in the batch; the second is padded
SMALL = dict(
    vocab_size=37,
    hidden_size=24,
    intermediate_size=28,
    num_hidden_layers=2,
    num_attention_heads=3,
    max_position_embeddings=24,
    type_vocab_size=2,
)
DISTILBERT = dict(vocab_size=37, dim=24, hidden_dim=28, n_layers=2, n_heads=3,
                  max_position_embeddings=24)  # fmt: skip
ELECTRA = SMALL | dict(embedding_size=16)
NO_TYPES = {k: v for k, v in SMALL.items() if k != "type_vocab_size"}
MPNET = NO_TYPES | dict(max_position_embeddings=150)
ESM = NO_TYPES | dict(pad_token_id=1, mask_token_id=5)
MODERN = NO_TYPES | dict(num_hidden_layers=4, local_attention=6, pad_token_id=0, bos_token_id=1,
                         eos_token_id=2, cls_token_id=1, sep_token_id=2)  # fmt: skip
DEBERTA = NO_TYPES | dict(relative_attention=True, position_biased_input=False,
                          pos_att_type=["p2c", "c2p"], share_att_key=True,
                          norm_rel_ebd="layer_norm")  # fmt: skip
NONE, MASKED, SEQUENCE, TOKENS, SPAN = (
    "Model",
    "ModelForMaskedLM",
    "ModelForSequenceClassification",
    "ModelForTokenClassification",
    "ModelForQuestionAnswering",
)
MODELS = {
    "bert_masked": ("bert", MASKED, SMALL),
    "bert_sequence": ("bert", SEQUENCE, SMALL | dict(num_labels=3, hidden_act="relu")),
    "bert_tokens": ("bert", TOKENS, SMALL | dict(num_labels=5, type_vocab_size=3)),
    "bert_span": ("bert", SPAN, SMALL),
    "roberta_masked": ("roberta", MASKED, SMALL | dict(type_vocab_size=1, hidden_act="gelu_new")),
    "roberta_sequence": ("roberta", SEQUENCE, SMALL | dict(pad_token_id=2)),
    "xlm_roberta": ("xlm-roberta", NONE, SMALL | dict(type_vocab_size=1)),
    "xlm_roberta_span": ("xlm-roberta", SPAN, SMALL | dict(type_vocab_size=1)),
    "camembert_tokens": ("camembert", TOKENS, SMALL | dict(type_vocab_size=1)),
    "electra_masked": ("electra", MASKED, ELECTRA),
    "electra_sequence": ("electra", SEQUENCE, ELECTRA | dict(embedding_size=24)),
    "distilbert_masked": ("distilbert", MASKED, DISTILBERT | dict(activation="relu")),
    "distilbert_sequence": ("distilbert", SEQUENCE, DISTILBERT),
    "albert_masked": ("albert", MASKED, ELECTRA | dict(num_hidden_layers=3)),
    "albert_sequence": ("albert", SEQUENCE, ELECTRA | dict(embedding_size=24)),
    "mpnet": ("mpnet", NONE, MPNET),
    "mpnet_masked": ("mpnet", MASKED, MPNET),
    "esm_masked": ("esm", MASKED, ESM | dict(token_dropout=True, position_embedding_type="rotary")),
    "esm_sequence": ("esm", SEQUENCE, ESM | dict(emb_layer_norm_before=True)),
    "nomic_bert_masked": (
        "nomic_bert",
        MASKED,
        SMALL | dict(rope_parameters=dict(rope_type="default", rope_theta=50.0)),
    ),
    "nomic_bert_sequence": ("nomic_bert", SEQUENCE, SMALL | dict(head_dim=6)),
    "modernbert_masked": (
        "modernbert",
        MASKED,
        MODERN | dict(norm_bias=True, mlp_bias=True, attention_bias=True, classifier_bias=True),
    ),
    "modernbert_sequence": ("modernbert", SEQUENCE, MODERN | dict(classifier_pooling="mean")),
    "modernbert_tokens": ("modernbert", TOKENS, MODERN),
    "deberta_v2_sequence": ("deberta-v2", SEQUENCE, DEBERTA | dict(position_buckets=6)),
    "deberta_v2_masked": (
        "deberta-v2",
        MASKED,
        DEBERTA | dict(position_biased_input=True, max_relative_positions=8, type_vocab_size=2),
    ),
}


def make(kind, head, options):
    """One model's config, tensors' names and shapes, inputs and outputs."""
    config = tf.AutoConfig.for_model(kind, **options)
    classes = getattr(tf, f"Auto{head}")
    with tempfile.TemporaryDirectory() as folder:  # tensors have other names in a file
        classes.from_config(config).save_pretrained(folder)
        file = pathlib.Path(folder, "model.safetensors")
        tensors = load_file(file)
        shapes = {name: tuple(x.shape) for name, x in tensors.items()}
        weights = {n: drawn(n, shape) for n, shape in shapes.items() if "inv_freq" not in n}
        save_file(tensors | weights, file, {"format": "pt"})
        text = pathlib.Path(folder, "config.json").read_text()
        model = classes.from_pretrained(folder, attn_implementation="eager").eval()
    rng = np.random.default_rng(0)
    mask = np.arange(max(LENGTHS))[None] < np.array(LENGTHS)[:, None]
    pad = config.pad_token_id
    ids = rng.integers(3, config.vocab_size, mask.shape)
    ids = np.where(mask, ids, 0 if pad is None else pad).astype(np.int32)
    inputs = {"ids": ids, "mask": mask}
    if getattr(config, "type_vocab_size", 0):
        inputs["types"] = rng.integers(0, config.type_vocab_size, mask.shape).astype(np.int32)
    words = {"ids": "input_ids", "mask": "attention_mask", "types": "token_type_ids"}
    with torch.no_grad():
        out = model(**{words[k]: torch.tensor(x).long() for k, x in inputs.items()})
    if head == SPAN:
        output = torch.stack([out.start_logits, out.end_logits], -1)
    else:
        output = out.last_hidden_state if head == NONE else out.logits
    texts = {"config": json.dumps(json.loads(text)), "shapes": json.dumps(shapes)}
    return {k: np.array(x) for k, x in texts.items()} | inputs | {"output": output.numpy()}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name in sys.argv[1:] or MODELS:
        np.savez_compressed(FOLDER / f"{name}.npz", **make(*MODELS[name]))
        print(name, (FOLDER / f"{name}.npz").stat().st_size, "bytes")
