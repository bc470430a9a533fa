"""Saves the logits of a base model with each adapter that PEFT opens, as NAME.npy beside it.

Arguments: token ids as JSON, the folder of the base, and folders of adapters. Then PEFT saves each
adapter again, as NAME.again.
"""

import json
import sys

import numpy as np
import peft
import torch
from transformers import AutoModelForCausalLM

ids, base, *folders = sys.argv[1:]
for folder in folders:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(model, folder).eval()
    with torch.no_grad():
        np.save(f"{folder}.npy", model(torch.tensor(json.loads(ids))).logits.numpy())
    model.save_pretrained(f"{folder}.again")
