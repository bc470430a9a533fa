"""Readable Flax models that load real checkpoints."""

from jaxmem.models.generation import generate as generate
from jaxmem.models.kv import KVCache as KVCache
from jaxmem.models.loading import load as load
from jaxmem.models.model import Model as Model
from jaxmem.models.rotating import rotate as rotate
from jaxmem.models.rotating import rotate_heads as rotate_heads
from jaxmem.models.smoothing import awq as awq
from jaxmem.models.smoothing import smooth as smooth
