"""Transformers opens what to_hf and to_compressed_tensors write, and computes the same.

    pip install -e ".[demo]"          # and then, there or in another environment
    pip install torch transformers compressed-tensors
    python experiments/quality/to_hf.py write FOLDER
    python experiments/quality/to_hf.py open FOLDER

The first command reads each tiny checkpoint of tests/reference, saves it with Model.save, loads
that and writes it into FOLDER; the second opens it with transformers, and compares the logits with
those in tests/reference, which transformers computed with the checkpoint itself. The first also
writes integers of 4 bits for the linear layers as compressed-tensors, with the logits that jaxmem
computes of them in float32, and the second opens that too. It writes to_hf.json, where a row that
is there stays; names after FOLDER choose some, in both commands.
"""

import importlib.metadata
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


def write(folder: pathlib.Path, names: list[str]) -> None:
    """Writes references as checkpoints, reads each, saves it, loads it, and writes that."""
    from safetensors.numpy import save_file

    import jaxmem as jm

    sys.path.append(str(ROOT / "tests"))
    from drawn_weights import drawn

    files = references()
    for name in names or files:
        file, source = files[name], folder / "sources" / name
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
        model = jm.models.load(source / "saved")
        jm.interop.to_hf(model, folder / name)
        record = write_codes(model, file, folder / "codes" / name)
        (source / "codes.json").write_text(json.dumps(record))


def write_codes(model, file: dict, folder: pathlib.Path) -> dict:
    """Writes int4 codes and what jaxmem computes of them; returns what was refused and decoded."""
    import jax

    import jaxmem as jm

    axes = lambda path: 4 if "/experts/" in path else 3 if "layers" in path else 2
    other = ("conv", "around", "depthwise", "positions")
    kernel = lambda path, x: (
        path.endswith("kernel") and x.ndim == axes(path) and not any(y in path for y in other)
    )
    leaves = dict(zip(jm.paths(model.tensors), jax.tree.leaves(model.params)))
    plan = {path: jm.Int(4) for path, x in leaves.items() if kernel(path, x)}
    record = {}
    folder.parent.mkdir(exist_ok=True)
    for rest in (plan, {path: x for path, x in plan.items() if "/experts/" not in path}):
        encoded = jm.encode(model.params, rest)
        try:
            written = jm.interop.to_compressed_tensors(folder, model, encoded)
            break
        except ValueError as error:
            record["refused"] = str(error)
    else:
        return record
    names = {
        "seq2seq": ("source", "ids", "mask"),
        "encoder": ("ids", "mask", "types") if "ids" in file else ("samples", "mask"),
        "two_towers": ("ids", "pixels", "mask"),
        "convolutional": ("pixels",),
    }.get(model.config.family, ("ids", "mask", "types") if "mask" in file else ("ids",))
    names = ("pixels",) if "ids" not in file and "pixels" in file else names
    args = [file.get(name) for name in names]
    run = jax.jit(model.apply)
    coded = {path for path, kind in written.types.items() if kind == "int4"}
    leaves, tree = jax.tree.flatten(jm.decode(encoded))
    for dtype in ("float32", "float16"):  # codes that transformers decodes at loading are float16
        rounded = [
            x.astype(dtype).astype("float32") if path in coded else x
            for path, x in zip(jm.paths(encoded), leaves)
        ]
        dense = jax.tree.unflatten(tree, rounded)
        output = run(dense, *args)
        output = getattr(output, "logits", output)  # two towers give vectors, too
        np.save(folder / f"output_{dtype}.npy", np.asarray(output))
    return record | {"int4": len(coded), "decoded": list(written.decoded)}


def opened(folder: pathlib.Path, file: dict, dequantize: bool | None = None) -> dict:
    """What transformers says of a folder, and how far its output is from the reference.

    The reference of codes is beside them; `dequantize` says whether they are decoded at loading.
    """
    import torch
    import transformers

    config = json.loads((folder / "config.json").read_text())
    names = config.get("architectures") or [""]
    codes = {}
    if dequantize is not None:
        codes["quantization_config"] = transformers.CompressedTensorsConfig(dequantize=dequantize)
    kind = next((x for end, x in KINDS.items() if names[0].endswith(end)), "AutoModelForCausalLM")
    model, info = getattr(transformers, kind).from_pretrained(
        folder,
        attn_implementation="sdpa" if config.get("alibi") else "eager",  # as in the reference
        experts_implementation="eager",
        output_loading_info=True,
        dtype=torch.float32,
        **codes,
    )
    words = INPUTS | (OF_SOURCE if "source" in file else {})
    if "source" in file and file["source"].ndim == 3:  # a spectrogram
        words = words | {"source": "input_features"}
    inputs = {name: torch.tensor(file[x]) for x, name in words.items() if x in file}
    inputs = {name: x if x.is_floating_point() else x.long() for name, x in inputs.items()}
    if "ids" in file and not {"mask", "source"} & set(file):
        inputs["use_cache"] = False  # an RWKV of transformers computes no other way with such sizes
    with torch.no_grad():
        # Experts that are decoded at loading stay in the float16 of their scales.
        out = (model.eval().float() if dequantize else model.eval())(**inputs)
    if "start_logits" in out:
        output = torch.stack([out.start_logits, out.end_logits], -1)
    else:
        kinds = ("logits", "logits_per_image", "last_hidden_state")
        output = out[next(kind for kind in kinds if kind in out)]
    expected = next(file[x] for x in OUTPUTS if x in file)
    output = output.numpy()
    if dequantize is not None:
        expected = np.load(folder / f"output_float{16 if dequantize else 32}.npy")
        mask = file.get("mask")
        if mask is not None and mask.shape == output.shape[:2]:  # what padding gives is not equal
            expected, output = expected[mask], output[mask]
    tensors = {x: sorted(info[f"{x}_keys"]) for x in ("missing", "unexpected", "mismatched")}
    return {
        "class": type(model).__name__,
        "dtype": str(model.dtype).removeprefix("torch."),
        "max_abs": float(np.abs(expected).max()),
        "max_abs_difference": float(np.abs(output - expected).max()),
    } | {name: names for name, names in tensors.items() if names}


def main() -> None:
    command, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    if command == "write":
        return write(folder, sys.argv[3:])
    import torch
    import transformers

    path = pathlib.Path(__file__).with_suffix(".json")
    read = json.loads(path.read_text()) if path.exists() else {}
    rows, codes = read.get("rows", {}), read.get("codes", {})
    files = references()
    for name in sys.argv[3:] or files:
        if name not in rows:
            rows[name] = opened(folder / name, files[name])
        if name not in codes:
            codes[name] = with_codes(folder, name, files[name])
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    versions["compressed_tensors"] = importlib.metadata.version("compressed-tensors")
    worst = lambda rows: max(
        (row["max_abs_difference"] / row["max_abs"] for row in rows), default=0
    )
    held = [row for row in codes.values() if "max_abs" in row]
    decoded = [row for row in held if row["decoded_at_loading"]]
    summary = {
        "checkpoints": len(rows),
        "largest_relative_difference": worst(rows.values()),
        "checkpoints_with_codes": len(held),
        "largest_relative_difference_as_codes": worst(row for row in held if row not in decoded),
        "decoded_at_loading": len(decoded),
        "largest_relative_difference_decoded": worst(decoded),
        "without_codes": sorted(set(codes) - {n for n, row in codes.items() if "max_abs" in row}),
    }
    result = versions | summary | {"rows": rows, "codes": codes}
    path.write_text(json.dumps(result, indent=1) + "\n")


def with_codes(folder: pathlib.Path, name: str, file: dict) -> dict:
    """What transformers says of the codes of a checkpoint.

    They stay codes where its modules call their linear layers; where one reads a weight itself, or
    splits or joins tensors at loading, they are decoded at loading, in float16.
    """
    record = json.loads((folder / "sources" / name / "codes.json").read_text())
    if not record.get("int4"):  # refused, or without a linear layer
        return record
    for dequantize in (False, True):
        try:
            row = opened(folder / "codes" / name, file, dequantize)
        except (RuntimeError, AttributeError, ValueError) as error:
            record["not_as_codes"] = str(error).partition("\n")[0][:200]
            continue
        is_equal = row["max_abs_difference"] <= 1e-3 * row["max_abs"]
        if is_equal or dequantize:
            return record | row | {"decoded_at_loading": dequantize}
        record["not_as_codes"] = "the logits differ"
    return record


if __name__ == "__main__":
    main()
