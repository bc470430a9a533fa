"""Encoded models and weights in the formats of other tools."""

from .compressed_tensors_export import to_compressed_tensors as to_compressed_tensors
from .gguf_export import to_gguf as to_gguf
from .qwix import from_qwix as from_qwix
from .qwix import to_qwix as to_qwix
