"""Encoders of images and sounds compute what transformers computes, and encode as others do."""

import functools
import json
import pathlib
import tempfile

import cheap_jit
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_weights import drawn
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

import jaxmem as jm
from jaxmem.architectures import encoder
from jaxmem.models.model import family

FOLDER = pathlib.Path(__file__).parents[1] / "reference/vision"
MEMBERS = sorted(path.stem for path in FOLDER.glob("*.npz"))
OUTPUTS = ("output", "of_texts", "of_images")
NO_INPUTS = ("config", "shapes", *OUTPUTS)


@functools.cache
def member(name):
    """The model of a Hugging Face folder, its inputs, and the outputs of transformers."""
    file = dict(np.load(FOLDER / f"{name}.npz"))
    with tempfile.TemporaryDirectory() as folder:
        write(pathlib.Path(folder), file)
        model = jm.models.load(folder)
        assert model.params  # they are read before the folder goes
    inputs = tuple(jnp.asarray(x) for key, x in file.items() if key not in NO_INPUTS)
    return model, inputs, [file[key] for key in OUTPUTS if key in file]


def write(folder, file):
    """Writes the config.json and the tensors of a reference."""
    shapes = json.loads(str(file["shapes"]))
    tensors = {name: np.asarray(drawn(name, shape)) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(str(file["config"]))


@pytest.mark.parametrize("name", MEMBERS)
def test_output_equals_the_reference(name):
    model, inputs, expected = member(name)
    outputs = jax.tree.leaves(cheap_jit.jit(model.apply)(model.params, *inputs))
    assert len(outputs) == len(expected)
    for x, y in zip(outputs, expected):
        assert x.shape == y.shape
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-4 * np.abs(y).max())


@pytest.mark.parametrize("name", MEMBERS)
def test_the_weight_maps_have_the_parameters_of_the_module(name):
    model, inputs, _ = member(name)
    net = family(model.config).module(model.config)
    init = jax.eval_shape(net.init, jax.random.key(0), *inputs)["params"]
    expected = {path: x.shape for path, x in flatten_dict(init, sep="/").items()}
    maps = family(model.config).weights(model.config)
    assert expected == {path: x.shape for path, x in maps.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Hugging Face folder of the ViT with classes."""
    path = tmp_path_factory.mktemp("vit")
    write(path, np.load(FOLDER / "vit_classes.npz"))
    size = {"height": 12, "width": 12}
    processor = {"image_processor_type": "ViTImageProcessor", "size": size, "do_rescale": False}
    (path / "preprocessor_config.json").write_text(json.dumps(processor))
    return path


def test_an_encoder_of_images_encodes_saves_and_loads_with_its_processor(folder, tmp_path):
    _, (pixels,), (expected,) = member("vit_classes")
    model = jm.models.load(folder)
    uses = jm.uses(model.apply, model.params, pixels)
    kernels = [path for path in uses if path.endswith("kernel")]
    assert {use.op for path in kernels for use in uses[path]} == {"dot_general"}
    assert len(kernels) == 8
    lazy = jm.models.load(folder)
    params = jm.encode(
        lazy.tensors, jm.choose(lazy.tensors, {".*attn.*kernel": jm.Int(4)}), uses=uses
    )
    assert "params" not in vars(lazy)  # the dense params were never made
    lazy.save(tmp_path / "saved", params)
    saved = jm.models.load(tmp_path / "saved")
    output = cheap_jit.jit(saved.apply)(saved.tensors, pixels)
    dense = cheap_jit.jit(model.apply)(jm.decode(saved.tensors), pixels)
    np.testing.assert_allclose(output, dense, atol=1e-4)
    assert np.abs(output - expected).max() <= 0.5 * np.abs(expected).max()
    assert saved.processor == model.processor
    assert saved.processor([np.zeros((5, 7, 3), np.uint8)]).shape == (1, 3, 12, 12)


def test_statistics_reach_every_kernel(folder):
    model, (pixels,), _ = member("vit_classes")
    stats = jm.stats(model.apply, model.params, [(pixels,)], moments="diag")
    kernels = {path for path in flatten_dict(model.params, sep="/") if path.endswith("kernel")}
    assert kernels == set(stats)


@pytest.mark.parametrize("name", ["vit_classes", "dinov2_classes", "wav2vec2"])
def test_a_layout_divides_the_layers_over_four_devices(name):
    model, *_ = member(name)
    mesh = jm.mesh(fsdp=2, tensor=2)
    shardings = jm.shardings(model.params, mesh, jm.layouts.fsdp_tensor(model.config, mesh))
    whole = jax.tree.map(lambda x, s: s.shard_shape(x.shape) == x.shape, model.params, shardings)
    whole = flatten_dict(whole, sep="/")
    assert not whole["layers/attn/out/kernel"] and not whole["layers/mlp/up/kernel"]


def test_encoded_on_four_devices_it_computes_what_its_decoded_weights_do():
    model, (pixels,), _ = member("vit_classes")
    uses = jm.uses(model.apply, model.params, pixels)
    plan = jm.choose(model.params, {"layers/mlp/up/kernel|patches/kernel": jm.Int(8)})
    encoded = jm.encode(model.params, plan, uses=uses)
    mesh = jm.mesh(fsdp=2, tensor=2)
    layout = jm.layouts.fsdp_tensor(model.config, mesh)
    placed = jm.shard(encoded, jm.shardings(encoded, mesh, layout))
    output = cheap_jit.jit(model.apply)(placed, pixels)
    dense = cheap_jit.jit(model.apply)(jm.decode(encoded), pixels)
    np.testing.assert_allclose(output, dense, rtol=0, atol=1e-4 * np.abs(dense).max())


@pytest.mark.parametrize("shape", [(12, 12), (1, 1, 12, 12), (1, 12, 12, 3), (1, 3, 12, 8)])
def test_pixels_of_another_shape_are_refused(shape):
    model, *_ = member("vit_classes")
    with pytest.raises(ValueError, match=r"the pixels have shape .*expected \(batch, 3, 12, 12\)"):
        jax.eval_shape(model.apply, model.params, jax.ShapeDtypeStruct(shape, jnp.float32))


def test_pixels_that_are_bytes_or_have_a_mask_are_refused():
    model, (pixels,), _ = member("vit_classes")
    with pytest.raises(ValueError, match="the pixels are uint8, expected floats"):
        model.apply(model.params, pixels.astype(jnp.uint8))
    with pytest.raises(ValueError, match="takes pixels alone"):
        model.apply(model.params, pixels, jnp.ones((2, 10), bool))


@pytest.mark.parametrize("change", [{"patch_size": [4, 2]}, {"image_size": 3}, {"hidden_act": "x"},
    {"num_attention_heads": 5}, {"num_channels": 0}, {"twist": 1}])  # fmt: skip
def test_a_value_that_is_not_computed_is_refused_by_name(change):
    hf = json.loads(str(np.load(FOLDER / "vit_classes.npz")["config"]))
    with pytest.raises(ValueError, match=f"^{next(iter(change))} is "):
        encoder.Config.from_hf(hf | change)


@pytest.mark.parametrize("change", [{"vocab": 3}, {"positions": "none"}, {"head": "masked_lm"},
    {"patches": {"height": 2, "width": 8, "size": 4}}])  # fmt: skip
def test_options_that_do_not_go_with_patches_are_refused_by_name(change):
    sizes = dict(vocab=0, width=32, ffn=48, layers=2, heads=4, types=0)
    sizes |= {"patches": {"height": 8, "width": 8, "size": 4}}
    assert encoder.Config(**sizes).patches.tokens == 5
    name = {"patches": "size"}.get(next(iter(change)), next(iter(change)))
    with pytest.raises(ValueError, match=f"^{name} is "):
        encoder.Config(**sizes | change)


def test_a_processor_that_is_not_computed_is_refused_with_its_file(folder):
    file = folder / "preprocessor_config.json"
    text = file.read_text()
    file.write_text(text.replace("ViTImage", "OwlImage"))
    with pytest.raises(ValueError, match=r"preprocessor_config.json: image_processor_type is"):
        jm.models.load(folder)
    file.write_text(text)
