"""The part of peft_kinds.py that torch runs: PEFT's adapters are trained, and all give logits.

python experiments/quality/peft_kinds_torch.py FOLDER
"""

import argparse
import importlib.metadata
import json
import pathlib

import numpy as np
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from transformers.models.llama import modeling_llama

STEPS, RATE = 20, 1e-3
LINEARS = [f"{x}_proj" for x in ("q", "k", "v", "o", "gate", "up", "down")]
OTHERS = {"q_proj": 16, "k_proj": 16, "v_proj": 16, "o_proj": 16, "down_proj": 4}
KINDS = {
    "rsLoRA": dict(r=16, lora_alpha=8, use_rslora=True),
    "DoRA": dict(r=8, lora_alpha=16, use_dora=True),
    "mixed ranks": dict(r=8, lora_alpha=8, rank_pattern=OTHERS, alpha_pattern={"q_proj": 32}),
}


def compute_in_float64() -> None:
    """Norms and angles of transformers' Llama are then in float64, as all else in double()."""
    torch.float32 = torch.float64

    def angles(self, x, position_ids):
        turn = position_ids[:, :, None].double() * self.inv_freq[None, None, :].double()
        turn = torch.cat((turn, turn), dim=-1)
        return turn.cos(), turn.sin()

    modeling_llama.LlamaRotaryEmbedding.forward = angles


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=pathlib.Path)
    folder = parser.parse_args().folder
    arrays = np.load(folder / "rows.npz")
    window = torch.tensor(arrays["windows"][:1], dtype=torch.long)
    single = torch.float32

    def base() -> transformers.PreTrainedModel:
        load = transformers.AutoModelForCausalLM.from_pretrained
        return load(folder / "base", dtype=single, attn_implementation="sdpa")

    for kind, fields in KINDS.items():
        if (folder / "kinds/theirs" / kind).exists():
            continue
        torch.manual_seed(0)
        config = LoraConfig(task_type="CAUSAL_LM", target_modules=LINEARS, **fields)
        model = get_peft_model(base(), config)
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=RATE)
        for rows in torch.tensor(arrays["steps"][:STEPS, :1], dtype=torch.long):
            optimizer.zero_grad()
            loss = model(input_ids=rows, labels=rows).loss
            loss.backward()
            optimizer.step()
        print(kind, loss.item(), flush=True)
        model.save_pretrained(folder / "kinds/theirs" / kind)

    places = {"ours/LoRA": folder / "ours", "theirs/LoRA": folder / "theirs"}
    places |= {
        f"{x}/{kind}": folder / "kinds" / x / kind for x in ("ours", "theirs") for kind in KINDS
    }
    places = {"base": None} | places
    models = {k: PeftModel.from_pretrained(base(), x) if x else base() for k, x in places.items()}
    found = {}
    for dtype in ("float32", "float64"):
        if dtype == "float64":
            compute_in_float64()
        for name in places:
            model = models.pop(name) if dtype == "float64" else models[name]
            model = model.eval().to(getattr(torch, dtype))
            with torch.no_grad():
                found[f"{name}/{dtype}"] = model(input_ids=window).logits.numpy()
    np.savez(folder / "kinds/torch.npz", **found)
    versions = {x: importlib.metadata.version(x) for x in ("torch", "transformers", "peft")}
    (folder / "kinds/versions.json").write_text(json.dumps(versions))


if __name__ == "__main__":
    main()
