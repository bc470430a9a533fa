"""Readable Flax models that load real checkpoints."""

from ..kv_cache.quantized import KVCache as KVCache
from .generation import generate as generate
from .loading import load as load
from .model import Model as Model
from .rotating import rotate as rotate
from .rotating import rotate_heads as rotate_heads
from .smoothing import awq as awq
from .smoothing import smooth as smooth
