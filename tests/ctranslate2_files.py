"""Small files of CTranslate2, written by tests."""

import struct

import numpy as np

TYPES = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4, "bfloat16": 5}


def text(value):
    data = value.encode() + b"\0"
    return struct.pack("<H", len(data)) + data


def variable(name, array):
    shape, kind = array.shape, TYPES[array.dtype.name]
    header = struct.pack(f"<B{len(shape)}I", len(shape), *shape)
    return text(name) + header + struct.pack("<BI", kind, array.nbytes) + array.tobytes()


def content(variables, aliases=(), *, kind="WhisperSpec", version=6, revision=3):
    """The bytes of a file with `variables`, arrays by name, and pairs of an alias and a name."""
    head = struct.pack("<I", version) + text(kind) + struct.pack("<II", revision, len(variables))
    body = b"".join(variable(name, array) for name, array in variables.items())
    pairs = b"".join(text(alias) + text(name) for alias, name in aliases)
    return head + body + struct.pack("<I", len(aliases)) + pairs


def whisper_variables(tensors, config):
    """The variables of a Whisper, from the tensors and the config.json that transformers has."""
    tensors = {name.removeprefix("model."): x for name, x in tensors.items()}
    out = {"decoder/embeddings/weight": tensors["decoder.embed_tokens.weight"]}
    norms = {"self_attention": "self_attn_layer_norm", "attention": "encoder_attn_layer_norm"}
    norms |= {"ffn": "final_layer_norm"}

    def put(name, *sources):
        is_norm = name.endswith("layer_norm")
        for end, old in (
            ("gamma" if is_norm else "weight", "weight"),
            ("beta" if is_norm else "bias", "bias"),
        ):
            parts = [tensors.get(f"{x}.{old}") for x in sources]
            zeros = next(x for x in parts if x is not None)
            parts = [np.zeros_like(zeros) if x is None else x for x in parts]  # the keys' bias
            out[f"{name}/{end}"] = np.concatenate(parts)

    for stack in ("encoder", "decoder"):
        out[f"{stack}/num_heads"] = np.int16(config[f"{stack}_attention_heads"])
        positions = tensors[f"{stack}.embed_positions.weight"]
        out[f"{stack}/position_encodings/encodings"] = positions
        put(f"{stack}/layer_norm", f"{stack}.layer_norm")
        i = 0
        while (layer := f"{stack}.layers.{i}") + ".fc1.weight" in tensors:
            new, linears = f"{stack}/layer_{i}", {"ffn/linear_0": ["fc1"], "ffn/linear_1": ["fc2"]}
            linears["self_attention/linear_0"] = [f"self_attn.{x}_proj" for x in "qkv"]
            linears["self_attention/linear_1"] = ["self_attn.out_proj"]
            if stack == "decoder":
                linears["attention/linear_0"] = ["encoder_attn.q_proj"]
                linears["attention/linear_1"] = [f"encoder_attn.{x}_proj" for x in "kv"]
                linears["attention/linear_2"] = ["encoder_attn.out_proj"]
            linears |= {f"{part}/layer_norm": [norm] for part, norm in norms.items()}
            if stack == "encoder":
                del linears["attention/layer_norm"]
            for part, sources in linears.items():
                put(f"{new}/{part}", *(f"{layer}.{x}" for x in sources))
            i += 1
    for i in (1, 2):
        put(f"encoder/conv{i}", f"encoder.conv{i}")
    options = {"activation": 3, "pre_norm": 1, "alibi": 0, "scale_embeddings": 0}
    return out | {f"decoder/{name}": np.int8(x) for name, x in options.items()}
