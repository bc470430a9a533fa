"""Files of llama.cpp's converter are read as the checkpoints they are of: gguf_converter.json.

    python experiments/quality/gguf_converter.py write FOLDER LLAMA_CPP
    python experiments/quality/gguf_converter.py read FOLDER

The first wants torch, transformers and gguf; LLAMA_CPP is a folder of llama.cpp's sources, of which
`conversion` is imported (vendor/llama.cpp in the source package of llama-cpp-python 0.3.36). The
second wants `pip install -e ".[demo]"`. The checkpoints are those of tests/reference/decoders, with
drawn weights and without a vocabulary. One that the converter cannot read is left out. Where it
writes no field for an option, or another value, the option's name is in the record.
"""

import dataclasses
import json
import pathlib
import sys

import numpy as np

TESTS = pathlib.Path(__file__).parents[2] / "tests"
REFERENCES = TESTS / "reference/decoders"
IGNORED = ("bos", "eos", "tensor_names", "family")


def write(folder: pathlib.Path, sources: str) -> None:
    """Writes the checkpoints, and what the converter makes of them: NAME.gguf."""
    sys.path[:0] = [sources, f"{sources}/gguf-py", str(TESTS)]
    import gguf
    from conversion import get_model_class
    from drawn_weights import drawn
    from safetensors.numpy import save_file
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    for path in sorted(REFERENCES.glob("*.npz")):
        file, source = np.load(path), folder / path.stem
        hf, shapes = (json.loads(str(file[name])) for name in ("config", "shapes"))
        source.mkdir(parents=True, exist_ok=True)
        try:
            name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[hf["model_type"]]
            whole = AutoConfig.for_model(**hf).to_dict() | {"architectures": [name]}
            (source / "config.json").write_text(json.dumps(whole))
            tensors = {tensor: drawn(tensor, shape) for tensor, shape in shapes.items()}
            save_file(tensors, source / "model.safetensors", {"format": "pt"})
            kind = get_model_class(name)
            kind.set_vocab = lambda self: self._set_vocab_none()
            out = folder / f"{path.stem}.gguf"
            kind(source, gguf.LlamaFileType.ALL_F32, out).write()
        except Exception as error:  # whatever the converter raises: the checkpoint is left out
            print(f"{path.stem} is not converted: {error!r}", flush=True)


def read(folder: pathlib.Path) -> dict:
    """What of each file equals its checkpoint, or why the file is refused."""
    sys.path.append(str(TESTS))
    import jax
    from drawn_weights import drawn
    from reference_models import read as read_parameters

    import jaxmem as jm
    from jaxmem.architectures import decoder

    found = {}
    for path in sorted(folder.glob("*.gguf")):
        file = np.load(REFERENCES / f"{path.stem}.npz")
        hf, shapes = (json.loads(str(file[name])) for name in ("config", "shapes"))
        try:
            config, model = decoder.Config.from_hf(hf), jm.models.load(path)
        except ValueError as error:
            found[path.stem] = {"refused": str(error).replace(f"{folder}/", "")[:120]}
            continue
        tensors = {name: drawn(name, shape) for name, shape in shapes.items()}
        expected = read_parameters(decoder.weights(config), tensors)
        pairs = zip(*map(jax.tree.leaves, (model.params, expected)), strict=True)
        difference = max(float(np.abs(np.asarray(a) - b).max()) for a, b in pairs)
        names = [field.name for field in dataclasses.fields(config) if field.name not in IGNORED]
        values = ((name, getattr(config, name), getattr(model.config, name)) for name in names)
        unlike = [name for name, a, b in values if not _equal(a, b)]
        found[path.stem] = {"largest_difference_of_weights": difference, "unlike": unlike}
    return found


def _equal(a: object, b: object) -> bool:
    """Whether two values of a field are equal, numbers in single precision."""
    if isinstance(a, float) and isinstance(b, float):
        return bool(np.isclose(a, b, rtol=1e-6, atol=0))
    return a == b


if __name__ == "__main__":
    command, folder, *sources = sys.argv[1:]
    if command == "write":
        write(pathlib.Path(folder), *sources)
    else:
        result = json.dumps(read(pathlib.Path(folder)), indent=1)
        pathlib.Path(__file__).with_suffix(".json").write_text(result + "\n")
