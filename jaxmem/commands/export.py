"""export: a model in the file format of another tool, with its codes unchanged."""

import dataclasses
import pathlib
from typing import Annotated, Literal

from tyro.conf import arg

from ..interop import to_compressed_tensors, to_gguf
from ..io.json_fields import read_object
from ..models import Model, load
from .options import Json, ModelName
from .output import Output
from .output_path import check_out


@dataclasses.dataclass(frozen=True)
class Export:
    """Writes a Llama, or what `jaxmem fit` made of it, for llama.cpp (gguf) or vLLM.

    Codes that the format can hold are copied, never rounded again; other weights are decoded, and
    listed.
    """

    model: ModelName
    _: dataclasses.KW_ONLY
    format: Literal["gguf", "compressed-tensors"]
    """A .gguf file, or a directory of config.json and safetensors."""
    out: Annotated[str, arg(metavar="PATH")]
    """A file or directory to write; it appears whole or not at all."""
    half: bool = False
    """gguf: round dense weights to float16."""
    int8: bool = False
    """compressed-tensors: write int8 tensors (`int-quantized`) instead of packed words."""
    json: Json = False

    def run(self, output: Output) -> dict:
        """Writes the file, shows a summary on `output`, and returns it as plain data."""
        out = check_out(self.out, makes_parents=True)
        if out.exists():
            raise ValueError(f"{out} exists; choose another --out")
        model = with_codes(self.model)
        with output.step(f"writing {out}"):
            if self.format == "gguf":
                written = to_gguf(out, model, half=self.half)
            else:
                written = to_compressed_tensors(out, model, packed=not self.int8)
        output.say(written)
        return {"source": model.source, "format": self.format} | dataclasses.asdict(written)


def with_codes(name: str) -> Model:
    """The model, with encoded params if its file holds codes."""
    config = pathlib.Path(name) / "config.json"
    has_codes = name.endswith(".gguf")
    if config.is_file():
        has_codes = bool(read_object(config).get("quantization_config"))
    return load(name, encoded=has_codes)
