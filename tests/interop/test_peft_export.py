"""Adapters that we write as PEFT folders are read again to the bit, and know their base."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference_models import FOLDER, member

import jaxmem as jm
from jaxmem.interop import from_peft, to_peft
from jaxmem.models.model import Model


def base(name, params=None):
    config, dense, _, _ = member(name)
    return Model(config, dense if params is None else params, None, name)


def drawn(pairs):
    """Pairs with numbers everywhere."""
    leaves, tree = jax.tree.flatten(pairs)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return tree.unflatten([jax.random.normal(k, x.shape) for k, x in zip(keys, leaves)])


def pairs_of(model, rank, where):
    return drawn(jm.adapters.adapters(jax.random.key(0), model.params, rank, where))


def said(folder):
    return json.loads((folder / "adapter_config.json").read_text())


@pytest.mark.parametrize("form", ["lora", "dora"])
def test_a_round_trip_is_equal_to_the_bit_with_mixed_ranks_in_a_stack(form, tmp_path):
    model = base("llama_biases")
    pairs = pairs_of(model, {".*attn/q.*": 4, ".*": 2}, ".*(attn/q|mlp/up)/kernel")
    pairs["layers/attn/q/kernel"]["u"] = pairs["layers/attn/q/kernel"]["u"].at[1, :, 3:].set(0)
    pairs["layers/attn/q/kernel"]["v"] = pairs["layers/attn/q/kernel"]["v"].at[1, 3:].set(0)
    if form == "dora":
        pairs = jm.adapters.with_magnitudes(model.params, pairs)
    to_peft(tmp_path / "a", pairs, model)
    again = from_peft(tmp_path / "a", model)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), again, pairs))
    config = said(tmp_path / "a")
    assert config["r"] == config["lora_alpha"] == 2 and config["use_dora"] == (form == "dora")
    assert config["rank_pattern"]["model.layers.1.self_attn.q_proj"] == 3
    assert config["target_modules"] == ["q_proj", "up_proj"]


@pytest.mark.parametrize("root", [False, True])
def test_alpha_stays_beside_the_numbers(root, tmp_path):
    model = base("llama_biases")
    pairs = pairs_of(model, 2, ".*mlp/up/kernel")
    to_peft(tmp_path / "a", pairs, model, alpha=8, root=root)
    config = said(tmp_path / "a")
    assert config["lora_alpha"] == 8 and config["use_rslora"] is root
    again, want = from_peft(tmp_path / "a", model), jm.adapters.with_alpha(pairs, 8, root=root)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), again, want)


def test_parameters_of_one_linear_become_one_module_of_the_same_function(tmp_path):
    model = base("phi3")
    pairs = pairs_of(model, 2, ".*attn/(q|k|v)/kernel")
    pairs["layers/attn/k/kernel"]["v"] = pairs["layers/attn/q/kernel"]["v"]  # one A for both
    to_peft(tmp_path / "a", pairs, model)
    assert said(tmp_path / "a")["r"] == 4
    again = from_peft(tmp_path / "a", model)
    product = lambda pair: jnp.einsum("lnr,lrk->lnk", pair["u"], pair["v"])
    for path, pair in pairs.items():
        np.testing.assert_allclose(product(again[path]), product(pair), atol=1e-5)


def test_peft_files_of_others_are_written_as_they_were_read(tmp_path):
    model = base("llama_biases")
    theirs = from_peft(FOLDER / "adapters" / "llama_biases", model)
    to_peft(tmp_path / "a", theirs, model)
    again = from_peft(tmp_path / "a", model)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), again, theirs))


def test_an_adapter_of_another_base_is_refused_and_the_encoded_base_is_not(tmp_path):
    model = base("llama_biases")
    to_peft(tmp_path / "a", pairs_of(model, 2, ".*mlp/up/kernel"), model)
    encoded = jm.encode(model.params, {"layers/mlp/up/kernel": jm.Int(2, group=8)})
    from_peft(tmp_path / "a", base("llama_biases", encoded))
    other = jax.tree.map(lambda w: w[..., ::-1], model.params)
    with pytest.raises(ValueError, match="an adapter of another base: the numbers of its layers/"):
        from_peft(tmp_path / "a", base("llama_biases", other))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: {"layers/mlp/up/kernel": {"down": 1, "up": 2, "bias": 3}}, "has the parts"),
        (lambda p: {"layers/none": p["layers/mlp/up/kernel"]}, "layers/none', which llama_biases"),
        (lambda p: jax.tree.map(jnp.zeros_like, p), "hold zeros alone"),
        (lambda p: jax.tree.map(lambda x: x[:1], p), "has 1 layers, expected 2"),
    ],
)
def test_what_is_no_adapter_of_the_model_is_refused(change, message, tmp_path):
    model = base("llama_biases")
    with pytest.raises(ValueError, match=message):
        to_peft(tmp_path / "a", change(pairs_of(model, 2, ".*mlp/up/kernel")), model)
    assert not (tmp_path / "a").exists()
