"""Networks of convolutions encode their kernels as matrices, keep their norms, refuse the rest."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cheap_jit import jit
from test_vision import FOLDER, member

import jaxmem as jm
from jaxmem.architectures import convolutional

SIZES = dict(widths=(8, 16), depths=(1, 2), stem=8, block="basic")


def test_a_stack_of_kernels_is_a_stack_of_matrices_and_runs_encoded(tmp_path):
    model, (pixels,), _ = member("resnet_classes")
    uses = jm.uses(model.apply, model.params, pixels)
    kernels = {path: uses[path] for path in uses if path.endswith("kernel")}
    convolutions = {p: use for p, (use,) in kernels.items() if use.op == "conv_general_dilated"}
    assert len(convolutions) == 10 and set(kernels) - set(convolutions) == {"head/kernel"}
    assert {use.axes for use in convolutions.values()} == {(-4, -3, -2)}
    plan = jm.choose(model.params, {"stage_0/conv_0/kernel": jm.Int(4)})
    encoded = jm.encode(model.params, plan, uses=uses)
    stack = encoded["stage_0"]["conv_0"]["kernel"]
    assert stack.shape == (2, 3, 3, 8, 8) and stack.scale.shape[:2] == (2, 1)
    model.save(tmp_path / "saved", encoded)
    saved = jm.models.load(tmp_path / "saved")
    output = jit(saved.apply)(saved.tensors, pixels)
    dense = jit(model.apply)(jm.decode(encoded), pixels)
    np.testing.assert_allclose(output, dense, rtol=0, atol=1e-4 * np.abs(dense).max())
    assert saved.config == model.config


def test_the_mean_and_the_variance_of_a_norm_have_no_gradient():
    model, (pixels,), _ = member("resnet_classes")
    gradient = jit(jax.grad(lambda p: (model.apply(p, pixels) ** 2).sum()))(model.params)
    norm = gradient["stage_0"]["norm_0"]
    assert not norm["mean"].any() and not norm["var"].any() and norm["scale"].any()


@pytest.mark.parametrize("shape", [(3, 16, 20), (1, 4, 16, 20), (1, 16, 20, 3), (1, 3, 7, 20)])
def test_pixels_of_another_shape_are_refused(shape):
    model, *_ = member("convnext_classes")
    run = lambda dtype: jax.eval_shape(
        model.apply, model.params, jax.ShapeDtypeStruct(shape, dtype)
    )
    with pytest.raises(ValueError, match=r"expected floats \(batch, 3, .* of at least 8"):
        run(jnp.float32)
    with pytest.raises(ValueError, match="the pixels are uint8"):
        run(jnp.uint8)


@pytest.mark.parametrize("name, change", [("resnet", {"layer_type": "wide"}), ("resnet",
    {"hidden_act": "x"}), ("resnet", {"twist": 1}), ("convnext", {"num_stages": 3}),
    ("convnext", {"patch_size": 0}), ("convnext", {"drop_path": 0.1})])  # fmt: skip
def test_a_value_that_is_not_computed_is_refused_by_name(name, change):
    hf = json.loads(str(np.load(FOLDER / f"{name}.npz")["config"]))
    with pytest.raises(ValueError, match=f"^{next(iter(change))} is "):
        convolutional.Config.from_hf(hf | change)


@pytest.mark.parametrize("change", [{"depths": (1,)}, {"stem": 0}, {"block": "wide"},
    {"first_stride": 3}, {"labels": -1}, {"widths": (6, 16), "block": "bottleneck"},
    {"widths": (16, 16), "block": "depthwise"}, {"family": "bert"}])  # fmt: skip
def test_a_configuration_that_cannot_be_is_refused_by_name(change):
    assert convolutional.Config(**SIZES).layers == 3
    name = "stem" if change.get("block") == "depthwise" else next(iter(change))
    with pytest.raises(ValueError, match=f"^{name} is "):
        convolutional.Config(**SIZES | change)


def test_a_layout_by_heads_is_refused():
    model, *_ = member("resnet")
    with pytest.raises(TypeError, match="the config of a model"):
        jm.layouts.fsdp(model.config, jm.mesh(fsdp=8))
