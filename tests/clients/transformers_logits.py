"""Saves the logits of each checkpoint that transformers opens, as NAME.npy beside it.

Arguments: token ids as JSON, and folders.
"""

import json
import sys

import numpy as np
import torch
from transformers import AutoModelForCausalLM

ids, *folders = sys.argv[1:]
for folder in folders:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        np.save(f"{folder}.npy", model(torch.tensor(json.loads(ids))).logits.numpy())
