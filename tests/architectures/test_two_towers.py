"""Two towers run alone and together, encode, and refuse what they do not compute."""

import jax
import jax.numpy as jnp
import pytest
from test_vision import member

import jaxmem as jm
from jaxmem.architectures import two_towers


def test_one_tower_runs_alone_and_two_make_logits():
    model, (ids, pixels, mask), (_, texts, images) = member("clip")
    run = lambda *inputs: jax.eval_shape(model.apply, model.params, *inputs)
    assert run(None, pixels).images.shape == images.shape and run(None, pixels).logits is None
    assert run(ids, None, mask).texts.shape == texts.shape and run(ids).images is None
    assert run(ids, pixels).logits.shape == (2, 3)
    with pytest.raises(ValueError, match="ids and pixels are None"):
        run(None)
    with pytest.raises(ValueError, match="the token ids reach from 37 to 37"):
        model.apply(model.params, jnp.full((1, 4), 37), pixels)


def test_two_towers_encode_and_are_saved(tmp_path):
    model, inputs, _ = member("siglip")
    uses = jm.uses(model.apply, model.params, *inputs)
    kernels = [path for path in uses if path.endswith("kernel")]
    assert {use.op for path in kernels for use in uses[path]} == {"dot_general"}
    plan = jm.choose(model.params, {"image/pool/[qk]/kernel": jm.Int(4)})
    model.save(tmp_path / "saved", jm.encode(model.params, plan, uses=uses))
    saved = jm.models.load(tmp_path / "saved")
    assert saved.config == model.config
    assert saved.tensors["image"]["pool"]["q"]["kernel"].bits == 4


def test_a_layout_divides_both_towers():
    model, *_ = member("clip")
    mesh = jm.mesh(fsdp=2, tensor=2)
    shardings = jm.shardings(model.params, mesh, jm.layouts.fsdp_tensor(model.config, mesh))
    for tower in ("text", "image"):
        layers = model.params[tower]["layers"], shardings[tower]["layers"]
        kernel, placed = (tree["mlp"]["up"]["kernel"] for tree in layers)
        assert placed.shard_shape(kernel.shape) != kernel.shape


def test_fields_of_generation_that_old_files_hold_are_known():
    old = {"max_length": 20, "top_k": 50, "return_dict": True, "tie_word_embeddings": True}
    old |= {"length_penalty": 1.0, "id2label": {"0": "a"}, "bad_words_ids": None, "dropout": 0.0}
    hf = {"text_config": old, "text_config_dict": None, "vision_config": old | {"patch_size": 14}}
    assert two_towers.Config.from_hf({"model_type": "clip"} | hf).image.patches.size == 14


@pytest.mark.parametrize("name, change", [("twist", {"twist": 1}), ("text_config.twist",
    {"text_config": {"twist": 1}}), ("vision_config.hidden_act",
    {"vision_config": {"hidden_act": "x"}}), ("text_config is 3", {"text_config": 3}),
    ("vision_config.patch_size", {"vision_config": {"patch_size": 0}})])  # fmt: skip
def test_what_two_towers_do_not_compute_is_refused_by_name(name, change):
    with pytest.raises(ValueError, match=f"^{name}"):
        two_towers.Config.from_hf({"model_type": "clip"} | change)


def test_missing_fields_have_the_values_of_the_first_clip_and_older_objects_come_first():
    assert two_towers.Config.from_hf({"model_type": "clip"}).image.patches.size == 32
    hf = {"text_config": {"eos_token_id": 5}, "text_config_dict": {"eos_token_id": 2}}
    assert two_towers.Config.from_hf({"model_type": "clip"} | hf).text.pool == "highest"


@pytest.mark.parametrize("change", [{"text_width": 3}, {"text_width": -1}, {"family": "bert"},
    {"image": "text"}, {"text": {"head": ""}}, {"text": {"pool": "end"}}])  # fmt: skip
def test_towers_that_do_not_fit_each_other_are_refused(change):
    tower = dict(width=32, ffn=48, layers=2, heads=4, types=0, head="vector")
    text, patches = tower | {"vocab": 64}, {"patches": dict(height=8, width=8, size=4)}
    config = {"text": text, "image": tower | {"vocab": 0} | patches}
    assert two_towers.Config(**config).space == 32
    more = {k: {**config[k], **x} if isinstance(x, dict) else x for k, x in change.items()}
    more |= {"image": text} if change.get("image") == "text" else {}
    with pytest.raises(ValueError, match=r"expected|vectors of texts"):
        two_towers.Config(**config | more)
