"""Transformers opens what to_hf writes, and computes the same: writes to_hf.json.

    pip install -e ".[demo]"          # and then, there or in another environment
    pip install torch transformers
    python experiments/quality/to_hf.py write FOLDER
    python experiments/quality/to_hf.py open FOLDER

The first command reads each tiny checkpoint of tests/reference, saves it with Model.save, loads
that and writes it into FOLDER; the second opens it with transformers, and compares the logits with
those in tests/reference, which transformers computed with the checkpoint itself. Both are of
float32.
"""

import json
import pathlib
import sys

import numpy as np

ROOT = pathlib.Path(__file__).parents[2]
REFERENCE = ROOT / "tests/reference"
KINDS = {  # the end of a class's name: the class that opens it
    "ForMaskedLM": "AutoModelForMaskedLM",
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForTokenClassification": "AutoModelForTokenClassification",
    "ForQuestionAnswering": "AutoModelForQuestionAnswering",
    "ForImageClassification": "AutoModelForImageClassification",
    "WhisperForConditionalGeneration": "AutoModelForSpeechSeq2Seq",
    "ForConditionalGeneration": "AutoModelForSeq2SeqLM",
    "ForCTC": "AutoModelForCTC",
    "MarianMTModel": "AutoModelForSeq2SeqLM",
    "LMHeadModel": "AutoModelForCausalLM",
    "Model": "AutoModel",
}
INPUTS = {"ids": "input_ids", "mask": "attention_mask", "types": "token_type_ids"}
INPUTS |= {"pixels": "pixel_values", "samples": "input_values"}
OUTPUTS = ("logits", "output", "hidden")
OF_SOURCE = {"source": "input_ids", "ids": "decoder_input_ids"}


def references() -> dict[str, dict]:
    """{name: arrays} of every reference of a model."""
    paths = [*REFERENCE.glob("*.npz"), *REFERENCE.glob("*/*.npz")]
    files = {path.stem: dict(np.load(path)) for path in sorted(paths)}
    return {name: file for name, file in files.items() if "model_type" in str(file.get("config"))}


def write(folder: pathlib.Path) -> None:
    """Writes each reference as a checkpoint, reads it, saves it, loads it, and writes that."""
    from safetensors.numpy import save_file

    import jaxmem as jm

    sys.path.append(str(ROOT / "tests"))
    from drawn_weights import drawn

    for name, file in references().items():
        source = folder / "sources" / name
        source.mkdir(parents=True)
        for text in {"config", "generation_config"} & set(file):
            (source / f"{text}.json").write_text(str(file[text]))
        if "shapes" in file:
            shapes = json.loads(str(file["shapes"]))
            tensors = {path: np.asarray(drawn(path, shape)) for path, shape in shapes.items()}
        else:
            tensors = {path: w for path, w in file.items() if "." in path}
        save_file(tensors, source / "model.safetensors", {"format": "pt"})
        jm.models.load(source).save(source / "saved")
        jm.interop.to_hf(jm.models.load(source / "saved"), folder / name)


def opened(folder: pathlib.Path, file: dict) -> dict:
    """What transformers says of a folder, and how far its output is from the reference."""
    import torch
    import transformers

    names = json.loads((folder / "config.json").read_text()).get("architectures") or [""]
    kind = next((x for end, x in KINDS.items() if names[0].endswith(end)), "AutoModelForCausalLM")
    model, info = getattr(transformers, kind).from_pretrained(
        folder,
        attn_implementation="eager",
        experts_implementation="eager",
        output_loading_info=True,
    )
    words = INPUTS | (OF_SOURCE if "source" in file else {})
    if "source" in file and file["source"].ndim == 3:  # a spectrogram
        words = words | {"source": "input_features"}
    inputs = {name: torch.tensor(file[x]) for x, name in words.items() if x in file}
    inputs = {name: x if x.is_floating_point() else x.long() for name, x in inputs.items()}
    if "ids" in file and not {"mask", "source"} & set(file):
        inputs["use_cache"] = False  # an RWKV of transformers computes no other way with such sizes
    with torch.no_grad():
        out = model.eval()(**inputs)
    if "start_logits" in out:
        output = torch.stack([out.start_logits, out.end_logits], -1)
    else:
        kinds = ("logits", "logits_per_image", "last_hidden_state")
        output = out[next(kind for kind in kinds if kind in out)]
    expected = next(file[x] for x in OUTPUTS if x in file)
    tensors = {x: sorted(info[f"{x}_keys"]) for x in ("missing", "unexpected", "mismatched")}
    return {
        "class": type(model).__name__,
        "dtype": str(model.dtype).removeprefix("torch."),
        "max_abs": float(np.abs(expected).max()),
        "max_abs_difference": float(np.abs(output.numpy() - expected).max()),
    } | {name: names for name, names in tensors.items() if names}


def main() -> None:
    command, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    if command == "write":
        return write(folder)
    import torch
    import transformers

    rows = {name: opened(folder / name, file) for name, file in references().items()}
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    worst = max(row["max_abs_difference"] / row["max_abs"] for row in rows.values())
    summary = {"checkpoints": len(rows), "largest_relative_difference": worst}
    result = versions | summary | {"rows": rows}
    pathlib.Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
