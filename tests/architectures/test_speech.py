"""Encoders of sounds encode with their convolutions, mask padding, and refuse other inputs."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cheap_jit import jit
from test_vision import FOLDER, member

import jaxmem as jm
from jaxmem.architectures import encoder


def test_every_kernel_is_encoded_as_a_matrix_and_reports_its_use(tmp_path):
    model, (samples, mask), _ = member("wav2vec2_letters")
    uses = jm.uses(model.apply, model.params, samples, mask)
    kernels = {path: uses[path] for path in uses if path.endswith("kernel")}
    convolutions = {p for p, (use,) in kernels.items() if use.op == "conv_general_dilated"}
    assert convolutions == {f"waves/{name}/kernel" for name in ("conv_0", "conv_1", "positions")}
    assert all(kernels[path][0].axes == (-3, -2) for path in convolutions)
    plan = jm.choose(model.params, {"waves/(conv_1|positions)/kernel": jm.Int(4)})
    model.save(tmp_path / "saved", jm.encode(model.params, plan, uses=uses))
    saved = jm.models.load(tmp_path / "saved")
    waves = saved.tensors["waves"]
    assert waves["positions"]["kernel"].scale.size == 24 and saved.config == model.config
    output = jit(saved.apply)(saved.tensors, samples, mask)
    dense = jit(model.apply)(jm.decode(saved.tensors), samples, mask)
    np.testing.assert_allclose(output, dense, atol=1e-4)


def test_padding_changes_nothing():
    model, (samples, _), (expected,) = member("wav2vec2")
    alone = jit(model.apply)(model.params, samples[1:, :53])
    assert alone.shape[1] == model.config.waves.tokens(53)
    np.testing.assert_allclose(alone[0], expected[1, : alone.shape[1]], atol=1e-4)


@pytest.mark.parametrize("shape", [(80,), (1, 10), (1, 80, 1)])
def test_sounds_of_another_shape_are_refused(shape):
    model, *_ = member("wav2vec2")
    with pytest.raises(ValueError, match=r"expected floats \(batch, samples\) with at least 11"):
        jax.eval_shape(model.apply, model.params, jax.ShapeDtypeStruct(shape, jnp.float32))


def test_integers_types_and_another_mask_are_refused():
    model, (samples, mask), _ = member("wav2vec2")
    run = lambda *inputs: jax.eval_shape(model.apply, model.params, *inputs)
    with pytest.raises(ValueError, match="the sounds are int16"):
        run(samples.astype(jnp.int16))
    with pytest.raises(ValueError, match=r"the mask has shape \(2, 8\), expected \(2, 80\)"):
        run(samples, mask[:, :8])
    with pytest.raises(ValueError, match="an encoder of sounds takes no types"):
        run(samples, mask, mask)


def test_options_of_training_are_known():
    hf = json.loads(str(np.load(FOLDER / "wav2vec2.npz")["config"]))
    more = {"mask_channel_selection": "static", "mask_time_min_space": 1, "layerdrop": 0.1}
    assert encoder.Config.from_hf(hf | more) == encoder.Config.from_hf(hf)


@pytest.mark.parametrize("change", [{"conv_kernel": [3]}, {"num_feat_extract_layers": 7},
    {"adapter_attn_dim": 4}, {"add_adapter": True}, {"num_conv_pos_embedding_groups": 5},
    {"architectures": ["Wav2Vec2ForSequenceClassification"]}, {"feat_extract_norm": "batch"},
    {"twist": 1}])  # fmt: skip
def test_a_value_that_is_not_computed_is_refused_by_name(change):
    hf = json.loads(str(np.load(FOLDER / "wav2vec2.npz")["config"]))
    with pytest.raises(ValueError, match=f"^{next(iter(change))} is "):
        encoder.Config.from_hf(hf | change)


@pytest.mark.parametrize("name, change", [("strides", {"strides": (2,)}), ("norm", {"norm": "x"}),
    ("position_window", {"position_window": 0}), ("waves.position_groups", {"position_groups": 5}),
    ("types", {})])  # fmt: skip
def test_convolutions_that_cannot_be_are_refused_by_name(name, change):
    waves = {"channels": (8, 8), "windows": (5, 3), "strides": (3, 2)} | change
    sizes = dict(vocab=0, width=32, ffn=48, layers=2, heads=4, types=int(not change))
    with pytest.raises(ValueError, match=f"^{name} is "):
        encoder.Config(**sizes, positions="none", waves=waves)
