"""Adapters: a few trainable numbers beside each frozen weight, which may be encoded."""

from .lora import adapters as adapters
from .lora import attach as attach
