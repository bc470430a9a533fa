"""export: a model in the file format of another tool, with its codes unchanged."""

import dataclasses
import pathlib
from typing import Annotated, Literal

from tyro.conf import arg

from ..interop import to_compressed_tensors, to_gguf, to_hf
from ..io.json_fields import read_object
from ..models import Model, load
from .options import CommonOptions, ModelName
from .output import Output
from .output_path import check_out


@dataclasses.dataclass(frozen=True)
class Export(CommonOptions):
    """Writes a model, or what `jaxmem fit` made of it, for llama.cpp, vLLM or transformers.

    Codes that the format can hold are copied, never rounded again; other weights are decoded, and
    listed. For gguf the model is a decoder, for compressed-tensors a Llama.
    """

    model: ModelName
    _: dataclasses.KW_ONLY
    format: Literal["gguf", "compressed-tensors", "hf"]
    """A .gguf file, or a directory of config.json and safetensors: with codes, or dense (hf)."""
    out: Annotated[str, arg(metavar="PATH")]
    """A file or directory to write; it appears whole or not at all."""
    no_tokenizer: bool = False
    """gguf: write no vocabulary; llama.cpp then takes token ids, but no text."""
    half: bool = False
    """gguf: round dense weights to float16."""
    int8: bool = False
    """compressed-tensors: write int8 tensors (`int-quantized`) instead of packed words."""
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """hf: the type of all tensors (default: of the weights as they are loaded)."""

    def run(self, output: Output) -> dict:
        """Writes the file, shows a summary on `output`, and returns it as plain data."""
        out = check_out(self.out, makes_parents=True)
        if out.exists():
            raise ValueError(f"{out} exists; choose another --out")
        for name, format in _FORMATS.items():
            if getattr(self, name) and self.format != format:
                option = name.replace("_", "-")
                raise ValueError(f"--{option} goes with --format {format}, not {self.format}")
        model = load(self.model) if self.format == "hf" else with_codes(self.model)
        with output.step(f"writing {out}"):
            if self.format == "gguf":
                written = to_gguf(out, model, half=self.half, tokenizer=not self.no_tokenizer)
            elif self.format == "hf":
                written = to_hf(model, out, dtype=self.dtype)
            else:
                written = to_compressed_tensors(out, model, packed=not self.int8)
        output.say(written)
        return {"source": model.source, "format": self.format} | dataclasses.asdict(written)


# Each option, and the format that it is of.
_FORMATS = {"half": "gguf", "no_tokenizer": "gguf", "int8": "compressed-tensors", "dtype": "hf"}


def with_codes(name: str) -> Model:
    """The model, with encoded params if its file holds codes."""
    config = pathlib.Path(name) / "config.json"
    has_codes = name.endswith(".gguf")
    if config.is_file():
        has_codes = bool(read_object(config).get("quantization_config"))
    return load(name, encoded=has_codes)
