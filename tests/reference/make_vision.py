"""Writes vision/*.npz: tiny encoders of images and sound, and what transformers makes of them.

Wants `pip install torch transformers pillow` (made with torch 2.13, transformers 5.24, pillow 13);
the tests do not. Each file holds the `config.json` and the tensors' names and shapes as text, the
inputs in the order in which our model takes them, and the f32 output. Script and test draw the
weights alike, from names and shapes.
"""

import json
import pathlib
import sys
import tempfile

import numpy as np
import torch
import transformers as tf
from safetensors.numpy import load_file, save_file

sys.path.append(str(pathlib.Path(__file__).parents[1]))
from drawn_weights import drawn

FOLDER = pathlib.Path(__file__).with_name("vision")
SMALL = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=3)
IMAGE = SMALL | dict(image_size=12, patch_size=4)
DINO = IMAGE | dict(mlp_ratio=2)
WIDE = IMAGE | dict(intermediate_size=28)
TEXT = SMALL | dict(intermediate_size=28, vocab_size=37, max_position_embeddings=11,
                    bos_token_id=1, eos_token_id=3, pad_token_id=3)  # fmt: skip
WIDER = WIDE | dict(hidden_size=32, num_attention_heads=2)
CLIP = dict(text_config=TEXT, vision_config=WIDER, projection_dim=20)
OLD_CLIP = CLIP | dict(text_config=TEXT | dict(eos_token_id=2, hidden_act="gelu"))
SIGLIP = dict(text_config=TEXT | dict(projection_size=32), vision_config=WIDER)
SOUND = SMALL | dict(intermediate_size=28, vocab_size=20, conv_dim=(8, 12), conv_kernel=(5, 3),
                     conv_stride=(3, 2), num_feat_extract_layers=2, num_conv_pos_embeddings=4,
                     num_conv_pos_embedding_groups=2)  # fmt: skip
STABLE = dict(feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True)
RESNET = dict(embedding_size=8, hidden_sizes=[8, 12], depths=[3, 2], num_labels=3)
CONVNEXT = dict(hidden_sizes=[8, 12], depths=[1, 2], num_stages=2, num_labels=3)
MODELS = {  # name: (class of transformers, options, shape of the pixels)
    "vit": ("ViTModel", WIDE | dict(image_size=(8, 12), num_channels=2), (2, 2, 8, 12)),
    "vit_classes": (
        "ViTForImageClassification",
        WIDE | dict(qkv_bias=False, num_labels=5, hidden_act="relu"),
        (2, 3, 12, 12),
    ),
    "dinov2_classes": ("Dinov2ForImageClassification", DINO, (2, 3, 12, 12)),
    "clip": ("CLIPModel", CLIP, (2, 3, 12, 12)),
    "clip_old": ("CLIPModel", OLD_CLIP, (2, 3, 12, 12)),
    "siglip": ("SiglipModel", SIGLIP, (2, 3, 12, 12)),
    "wav2vec2_letters": ("Wav2Vec2ForCTC", SOUND, (2, 80)),
    "wav2vec2": (
        "Wav2Vec2Model",
        SOUND | STABLE | dict(num_conv_pos_embeddings=3),
        (2, 80),
    ),
    "resnet_classes": (
        "ResNetForImageClassification",
        RESNET | dict(layer_type="basic"),
        (2, 3, 16, 20),
    ),
    "resnet": (
        "ResNetModel",
        RESNET | dict(downsample_in_first_stage=True, downsample_in_bottleneck=True),
        (1, 3, 25, 32),
    ),
    "convnext_classes": ("ConvNextForImageClassification", CONVNEXT, (2, 3, 16, 20)),
    "convnext": ("ConvNextModel", CONVNEXT | dict(layer_scale_init_value=0.0), (1, 3, 17, 8)),
    "dinov2_gated": ("Dinov2Model", DINO | dict(use_swiglu_ffn=True), (1, 3, 21, 8)),
}
PROCESSORS = {  # name: (start of the class, options)
    "vit": ("ViT", dict(size=dict(height=6, width=8))),
    "clip": ("CLIP", dict(size=dict(shortest_edge=7), crop_size=dict(height=6, width=6))),
    "padded": ("CLIP", dict(do_resize=False, crop_size=dict(height=16, width=9))),
    "siglip": ("Siglip", dict(size=dict(height=9, width=5), do_normalize=False)),
    "convnext": ("ConvNext", dict(size=dict(shortest_edge=7))),
    "bit": ("Bit", dict(size=dict(shortest_edge=8), do_center_crop=False, do_rescale=False)),
}


def make(name, options, shape):
    """One model's config, tensors' names and shapes, inputs and outputs."""
    model_class = getattr(tf, name)
    config = model_class.config_class(**options)
    with tempfile.TemporaryDirectory() as folder:  # tensors have other names in a file
        model_class(config).save_pretrained(folder)
        file = pathlib.Path(folder, "model.safetensors")
        shapes = {name: tuple(x.shape) for name, x in load_file(file).items()}
        weights = {name: np.asarray(drawn(name, shape)) for name, shape in shapes.items()}
        save_file(weights, file, {"format": "pt"})
        text = pathlib.Path(folder, "config.json").read_text()
        model = model_class.from_pretrained(folder, attn_implementation="eager").eval()
    rng = np.random.default_rng(0)
    signals = rng.standard_normal(shape).astype(np.float32)
    inputs = {"pixels": signals}
    if "conv_dim" in options:
        inputs = {"samples": signals, "mask": np.arange(shape[1]) < np.array([[80], [53]])}
    if "text_config" in options:
        ids = rng.integers(4, config.text_config.vocab_size, (3, 9)).astype(np.int32)
        mask = np.arange(9) < np.array([[9], [6], [5]])
        ids = np.where(mask, ids, 3)
        inputs = {"ids": ids, **inputs, "mask": mask}
    words = {"ids": "input_ids", "mask": "attention_mask", "pixels": "pixel_values"}
    words |= {"samples": "input_values"}
    with torch.no_grad():
        out = model(**{words[k]: torch.tensor(x) for k, x in inputs.items()})
    texts = {"config": json.dumps(json.loads(text)), "shapes": json.dumps(shapes)}
    return {k: np.array(x) for k, x in texts.items()} | inputs | output_of(out)


def output_of(out):
    """The logits or hidden states; of two towers the logits, and the vectors of both."""
    if hasattr(out, "logits_per_image"):
        arrays = {"output": out.logits_per_image, "of_texts": out.text_embeds}
        arrays["of_images"] = out.image_embeds
    else:
        arrays = {"output": out.logits if hasattr(out, "logits") else out.last_hidden_state}
    return {name: x.numpy() for name, x in arrays.items()}


def make_processed():
    """A random image, and what each processor of transformers with Pillow makes of it."""
    image = np.random.default_rng(0).integers(0, 256, (13, 17, 3), np.uint8)
    arrays = {"image": image}
    for name, (kind, options) in PROCESSORS.items():
        process = getattr(tf, f"{kind}ImageProcessorPil")(**options)
        arrays[f"{name}_config"] = np.array(json.dumps(process.to_dict()))
        arrays[name] = process(image, return_tensors="np")["pixel_values"]
    return arrays


def make_processed_sounds():
    """Two random sounds, and what the processor of transformers makes of them."""
    rng = np.random.default_rng(0)
    sounds = [rng.normal(3, 2, length).astype(np.float32) for length in (9, 14)]
    arrays = {"short": sounds[0], "long": sounds[1]}
    for name, masked in {"masked": True, "unmasked": False}.items():
        process = tf.Wav2Vec2FeatureExtractor(return_attention_mask=masked)
        arrays[f"{name}_config"] = np.array(process.to_json_string())
        out = process(sounds, sampling_rate=16_000, padding=True, return_tensors="np")
        arrays[name] = out["input_values"]
    return arrays


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name in sys.argv[1:] or MODELS:
        np.savez_compressed(FOLDER / f"{name}.npz", **make(*MODELS[name]))
        print(name, (FOLDER / f"{name}.npz").stat().st_size, "bytes")
    np.savez_compressed(FOLDER.with_name("processed_images.npz"), **make_processed())
    np.savez_compressed(FOLDER.with_name("processed_sounds.npz"), **make_processed_sounds())
