"""The model of remat_table.py and estimates.py: eight Llama layers, by shapes alone.

This module is imported, not run.
"""

from jaxmem.architectures import llama
from jaxmem.models import Model

CONFIG = llama.Config(
    vocab=32_000, width=2048, ffn=8192, layers=8, heads=16, kv_heads=16, head_dim=128, tied=True
)
MODEL = Model(CONFIG, llama.module(CONFIG), None, "8 layers")
