"""Writes adapters/: LoRA adapters as PEFT saves them, and the logits of a model with each.

Wants `pip install torch transformers peft` (made with torch 2.13, transformers 5.24, peft 0.21);
the tests do not. The base models are those of make_decoders.py, whose weights are drawn from names.
"""

import pathlib
import sys

import numpy as np
import peft
import torch
import transformers as tf

sys.path.append(str(pathlib.Path(__file__).parents[1]))
from drawn_weights import drawn
from make_decoders import MODELS

FOLDER = pathlib.Path(__file__).with_name("adapters")
ADAPTERS = {
    "llama_biases": dict(r=2, lora_alpha=3, use_rslora=True, target_modules=["q_proj", "up_proj"],
                         rank_pattern={"up_proj": 3}, alpha_pattern={"layers.1.mlp.up_proj": 5}),
    "phi3": dict(r=2, lora_alpha=4, target_modules=["qkv_proj", "down_proj"],
                 layers_to_transform=[1]),
}  # fmt: skip


def main():
    for name, options in ADAPTERS.items():
        torch.manual_seed(0)
        kind, fields = MODELS[name]
        config = tf.AutoConfig.for_model(kind, **fields)
        base = tf.AutoModelForCausalLM.from_config(config)
        tensors = {
            n: torch.from_numpy(drawn(n, list(t.shape))) for n, t in base.state_dict().items()
        }
        base.load_state_dict(tensors)
        model = peft.get_peft_model(base, peft.LoraConfig(**options)).eval()
        with torch.no_grad():
            for n, p in model.named_parameters():
                if "lora_" in n:
                    p.copy_(torch.randn(p.shape) * 0.3)
            ids = torch.from_numpy(np.load(FOLDER.with_name("decoders") / f"{name}.npz")["ids"])
            logits = model(ids.long()).logits.numpy()
        model.save_pretrained(FOLDER / name)
        (FOLDER / name / "README.md").unlink()
        np.savez(FOLDER / name / "logits.npz", ids=ids.numpy(), logits=logits)


if __name__ == "__main__":
    main()
