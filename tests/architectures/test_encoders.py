"""Every family of encoders computes what transformers computes, with padding, types and heads."""

import functools
import json
import pathlib

import cheap_jit
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_weights import drawn
from flax.traverse_util import flatten_dict
from reference_models import read
from safetensors.numpy import save_file

import jaxmem as jm
from jaxmem.architectures import encoder
from jaxmem.architectures.configs.encoder_config import HEADS
from jaxmem.models.checkpoint_tensors import _HARMLESS, bare_name

FOLDER = pathlib.Path(__file__).parents[1] / "reference/encoders"
MEMBERS = sorted(path.stem for path in FOLDER.glob("*.npz"))
BERT = {"model_type": "bert", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48}
BERT |= {"num_hidden_layers": 2, "num_attention_heads": 4}


@functools.cache
def member(name):
    """The config, the parameters, the file with inputs and output of transformers, the shapes."""
    file = dict(np.load(FOLDER / f"{name}.npz"))
    config = encoder.Config.from_hf(json.loads(str(file["config"])))
    shapes = json.loads(str(file["shapes"]))
    tensors = {bare_name(path): drawn(path, shape) for path, shape in shapes.items()}
    maps = encoder.weights(config)
    names = {path: [bare_name(x) for x in m.names] for path, m in maps.items()}
    tensors |= {x: tensors[bare_name(x)] for m in maps.values() for x in m.names}
    return config, read(maps, tensors), file, (names, {bare_name(path) for path in shapes})


@pytest.mark.parametrize("name", MEMBERS)
def test_output_equals_the_reference(name):
    config, params, file, _ = member(name)
    run = cheap_jit.jit(encoder.module(config).apply)
    types = jnp.asarray(file["types"]) if "types" in file else None
    output = run({"params": params}, jnp.asarray(file["ids"]), jnp.asarray(file["mask"]), types)
    output, expected = np.asarray(output), file["output"]
    assert output.shape == expected.shape
    if config.head != "sequence":  # what stands at padding is of no use
        output, expected = output[file["mask"]], expected[file["mask"]]
    np.testing.assert_allclose(output, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("name", MEMBERS)
def test_every_tensor_is_read_and_makes_a_parameter(name):
    config, params, _, (names, in_file) = member(name)
    read_names = {x for of_path in names.values() for x in of_path}
    assert all(_HARMLESS.fullmatch(x) for x in in_file - read_names)
    ids = jax.ShapeDtypeStruct((1, 4), jnp.int32)
    init = jax.eval_shape(encoder.module(config).init, jax.random.key(0), ids)["params"]
    expected = {path: x.shape for path, x in flatten_dict(init, sep="/").items()}
    assert expected == {path: x.shape for path, x in encoder.weights(config).items()}
    assert expected == {path: x.shape for path, x in flatten_dict(params, sep="/").items()}


def test_a_checkpoint_is_encoded_saved_and_loaded_with_its_head(tmp_path):
    _, _, file, _ = member("roberta_sequence")
    shapes = json.loads(str(file["shapes"]))
    tensors = {path: drawn(path, shape) for path, shape in shapes.items()}
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text(str(file["config"]))
    model = jm.models.load(tmp_path)
    kernels = [path for path in encoder.weights(model.config) if path.endswith("kernel")]
    params = jm.encode(model.tensors, {path: jm.Int(4) for path in kernels if "/attn/" in path})
    model.save(tmp_path / "saved", params)
    saved = jm.models.load(tmp_path / "saved")
    ids, mask = jnp.asarray(file["ids"]), jnp.asarray(file["mask"])
    uses = jm.uses(saved.apply, saved.tensors, ids, mask)
    assert {use.op for path in kernels for use in uses[path]} == {"dot_general"}
    output = cheap_jit.jit(saved.apply)(saved.tensors, ids, mask)
    dense = cheap_jit.jit(model.apply)(jm.decode(params), ids, mask)
    assert output.shape == (2, 2) and saved.config == model.config
    np.testing.assert_allclose(output, dense, atol=1e-4)
    assert saved.config.without_head().head == ""


@pytest.mark.parametrize("name", MEMBERS)
def test_a_layout_divides_the_parameters_over_four_devices(name):
    config, params, _, _ = member(name)
    mesh = jm.mesh(fsdp=2, tensor=2)
    layout = jm.layouts.fsdp_tensor(config, mesh)
    shardings = jm.shardings(params, mesh, layout)
    shapes = jax.tree.map(lambda x, s: s.shard_shape(x.shape) == x.shape, params, shardings)
    whole = flatten_dict(shapes, sep="/")
    assert not any(
        x for path, x in whole.items() if path.endswith(("attn/out/kernel", "up/kernel"))
    )


@pytest.mark.parametrize("name", ["albert_masked", "modernbert_tokens"])
def test_layers_that_are_no_stack_of_alike_ones_cannot_be_removed(name):
    config, params, _, _ = member(name)
    model = jm.models.Model(config, params, None, name)
    with pytest.raises(ValueError, match=r"(shared|bare_start)=True, expected layers"):
        jm.remove_layers(model, [1])


def test_each_head_has_a_reference():
    assert {member(name)[0].head for name in MEMBERS} == set(HEADS) - {"vector"}  # of towers


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "roberta", "max_position_embeddings": 2},
        {"model_type": "electra", "embedding_size": 0},
        {"model_type": "distilbert", "dim": "x"},
        {"model_type": "camembert", "position_embedding_type": "relative_key"},
        {"architectures": ["BertForMaskedLM"], "tie_word_embeddings": False},
        {"model_type": "deberta-v2", "relative_attention": False},
        {"model_type": "albert", "num_hidden_groups": 2},
        {"model_type": "modernbert", "decoder_bias": False},
        {"layer_scale": 0.5},
    ],
)
def test_a_value_that_is_not_computed_is_refused_by_name(change):
    *_, name = change
    with pytest.raises(ValueError, match=f"^{name} is "):
        encoder.Config.from_hf(BERT | change)


@pytest.mark.parametrize("change", [{"head": "next"}, {"activation": "elu"}, {"pad": -1},
    {"types": -1}, {"family": "llama"},
    {"positions": "sine"}, {"local": (True,), "window": 3}, {"theta": 0.0}, {"buckets": 6},
    {"bare_start": True}, {"span": 3, "farthest": 9}, {"head_activation": "relu"}])  # fmt: skip
def test_a_configuration_that_cannot_be_is_refused_by_name(change):
    with pytest.raises(ValueError, match=f"^{next(iter(change))} (is|names) "):
        encoder.Config(vocab=64, width=32, ffn=48, layers=2, heads=4, **change)


@pytest.mark.parametrize("mask, types, message", [((2, 7), (2, 8), "mask has shape"),
    ((2, 8), (8,), "types have shape"), ((2, 8), (2, 8), "types reach from 2 to 2")])  # fmt: skip
def test_a_mask_and_types_that_are_not_of_the_ids_are_refused(mask, types, message):
    config, params, _, _ = member("bert_masked")
    model = jm.models.Model(config, params, None, "bert")
    types = jax.ShapeDtypeStruct(types, jnp.int32) if "shape" in message else np.full(types, 2)
    ids, mask = jnp.ones((2, 8), jnp.int32), jax.ShapeDtypeStruct(mask, bool)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: model.apply(params, ids, mask, types))


def test_types_of_an_encoder_without_segments_are_refused():
    config, _, _, _ = member("distilbert_masked")
    ids = jax.ShapeDtypeStruct((1, 4), jnp.int32)
    with pytest.raises(ValueError, match="without segment types"):
        jax.eval_shape(encoder.module(config).init, jax.random.key(0), ids, None, ids)
