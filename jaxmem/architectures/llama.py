"""The Llama family: Llama 2 and 3, SmolLM2, Mistral, Qwen2, Qwen3, Gemma 3 by decoder.py."""

from .decoder import Block as Block
from .decoder import Config as Config
from .decoder import module as module
from .decoder import per_layer as per_layer
from .decoder import weights as weights
from .layers.feed_forward import activate as activate
