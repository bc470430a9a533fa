"""Encoded models and weights in the formats of other tools."""

import importlib
from types import ModuleType

from .compressed_tensors_export import to_compressed_tensors as to_compressed_tensors
from .gguf_export import to_gguf as to_gguf
from .hf_export import to_hf as to_hf
from .params_files import read_params as read_params
from .peft import from_peft as from_peft
from .peft_export import to_peft as to_peft
from .qwix import from_qwix as from_qwix
from .qwix import to_qwix as to_qwix


def __getattr__(name: str) -> ModuleType:
    """`jm.interop.orbax`, imported when it is first used: to import orbax takes a second."""
    if name == "orbax":
        return importlib.import_module(".orbax", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
