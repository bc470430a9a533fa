"""Readable Flax models that load real checkpoints."""

import importlib
from types import ModuleType

from ..architectures import bert as bert
from ..architectures import gpt2 as gpt2
from ..architectures import llama as llama
from ..formats.image_processor import ImageProcessor as ImageProcessor
from ..formats.log_mel_processor import LogMelProcessor as LogMelProcessor
from ..formats.waveform_processor import WaveformProcessor as WaveformProcessor
from ..kv_cache.quantized import KVCache as KVCache
from .activation_smoothing import awq as awq
from .activation_smoothing import smooth as smooth
from .beam_search import BeamSearch as BeamSearch
from .chat_messages import chat as chat
from .chat_messages import chat_prompt as chat_prompt
from .generation import generate as generate
from .loading import load as load
from .model import Model as Model
from .rotation import rotate as rotate
from .rotation import rotate_heads as rotate_heads
from .sentence_pooling import Pooling as Pooling
from .sentence_pooling import read_pooling as read_pooling
from .teacher_texts import generated_documents as generated_documents
from .training_texts import documents as documents
from .training_texts import packed_batches as packed_batches
from .user_modules import from_flax as from_flax


def __getattr__(name: str) -> ModuleType:
    """`jm.models.llama_nnx`, imported when it is first used: to import flax.nnx takes .3 s."""
    if name == "llama_nnx":
        return importlib.import_module("..architectures.llama_nnx", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
