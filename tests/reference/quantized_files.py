"""What make_quantized.py writes of every checkpoint: a tiny Llama, its files, and its logits."""

import json
import pathlib

import numpy as np
import torch
import transformers as tf
from safetensors.torch import save_file

FOLDER = pathlib.Path(__file__).with_name("quantized")
SIZES = dict(
    vocab_size=16,
    hidden_size=64,
    intermediate_size=64,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=32,
    max_position_embeddings=32,
    tie_word_embeddings=True,
    bos_token_id=1,
    eos_token_id=2,
)
IDS = torch.tensor([[1, 7, 4, 15, 9, 3]])


def llama(layers):
    """A random Llama; its embedding has numbers of bfloat16."""
    torch.manual_seed(0)
    config = tf.LlamaConfig(**SIZES, num_hidden_layers=layers)
    return drawn(tf.LlamaForCausalLM(config))


def drawn(model):
    """The model with random weights and norms."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.randn(p.shape) * 0.2 + ("norm" in name))
        embed = model.get_input_embeddings().weight
        embed.copy_(embed.bfloat16().float())
    return model.eval().float()


def write(name, model, tensors, config, reference=None):
    """The folder of a checkpoint; `reference` computes the logits, by default transformers."""
    folder = FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    said = model.config.to_dict() | config
    plain = tf.PretrainedConfig().to_dict()
    said.pop("_name_or_path", None)  # a temporary folder
    said = {k: v for k, v in said.items() if plain.get(k, "none") != v and "dtype" not in k}
    (folder / "config.json").write_text(json.dumps(said, indent=1) + "\n")
    tensors = {n: t.bfloat16() if n.endswith("embed_tokens.weight") and t.is_floating_point() else t
               for n, t in tensors.items() if n != "lm_head.weight"}  # fmt: skip
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "model.safetensors",
              {"format": "pt"})  # fmt: skip
    with torch.no_grad():
        logits = (reference or loaded(folder))(IDS).logits.float().numpy()
    np.savez(folder / "logits.npz", ids=IDS.numpy(), logits=logits)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(name, size, "bytes", float(np.abs(logits).max()))
    assert size < 40_000


def loaded(folder, **kwargs):
    return tf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **kwargs).eval()


def linears(model):
    return {n: m for n, m in model.named_modules() if ".layers." in f".{n}" and
            isinstance(m, torch.nn.Linear)}  # fmt: skip


def others(model, stems):
    """The tensors that are not those of quantized modules."""
    return {n: t for n, t in model.state_dict().items() if n.rpartition(".")[0] not in stems}
