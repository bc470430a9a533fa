"""LoRA adapters as PEFT saves them: PEFT's logits, and what a pair does not express is refused."""

import json
import shutil

import numpy as np
import pytest
import safetensors.numpy
from cheap_jit import jit
from reference_models import FOLDER, member

import jaxmem as jm
from jaxmem.interop import from_peft
from jaxmem.models.model import Model


def base(name):
    config, params, _, _ = member(name)
    return Model(config, params, None, name)


@pytest.mark.parametrize("name", ["llama_biases", "phi3"])
def test_a_model_with_an_adapter_has_the_logits_of_peft(name):
    model, want = base(name), np.load(FOLDER / "adapters" / name / "logits.npz")
    params = jm.adapters.attach(model.params, from_peft(FOLDER / "adapters" / name, model))
    got = jit(model.apply)(params, want["ids"])
    np.testing.assert_allclose(got, want["logits"], atol=1e-4 * np.abs(want["logits"]).max())


@pytest.mark.parametrize(
    "change, message",
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"alpha_pattern": {"^(a+)+$": 2}}, "not for a pattern"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save is \['lm_head.\], expected no mod"),
        ({"trainable_token_indices": [3]}, r"trainable_token_indices is \[3\], expected no rows"),
        ({"init_lora_weights": "pissa_niter_4"}, "leave the base model as it is"),
    ],
)
def test_an_option_that_is_not_computed_is_refused(change, message, tmp_path):
    said = json.loads((FOLDER / "adapters" / "phi3" / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(said | change))
    with pytest.raises(ValueError, match=f"adapter_config.json: {message}|{message}"):
        from_peft(tmp_path, base("phi3"))


def test_dora_without_magnitudes_is_refused(tmp_path):
    shutil.copytree(FOLDER / "adapters" / "phi3", tmp_path / "a")
    path = tmp_path / "a" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_dora": True}))
    with pytest.raises(ValueError, match="use_dora is True, expected true if the tensors hold mag"):
        from_peft(tmp_path / "a", base("phi3"))


MODULE = "base_model.model.model.layers.0.self_attn.qkv_proj"
WEIGHTS = {f"{MODULE}.lora_A.weight": np.ones((2, 48), np.float32),
           f"{MODULE}.lora_B.weight": np.ones((96, 2), np.float32)}  # fmt: skip


@pytest.mark.parametrize(
    "weights, message",
    [
        ({f"{MODULE}.lora_embedding_A": np.ones((2, 2), np.float32)}, "no matrix A or B"),
        ({f"{MODULE}.lora_B.weight": np.ones((96, 3), np.float32)}, "expected A and B"),
        ({f"{MODULE}.lora_B.weight": np.ones((90, 2), np.float32)}, "no choice of the outputs"),
        ({n.replace("qkv", "kvq"): w for n, w in WEIGHTS.items()}, "kvq_proj.weight, which phi3"),
        ({}, "which can run any code"),
    ],
)
def test_tensors_that_adapt_no_linear_are_refused(weights, message, tmp_path):
    shutil.copy(FOLDER / "adapters" / "phi3" / "adapter_config.json", tmp_path)
    if weights:
        path = tmp_path / "adapter_model.safetensors"
        safetensors.numpy.save_file(WEIGHTS | weights, path)
    else:
        (tmp_path / "adapter_model.bin").write_bytes(b"PK\x03\x04")
    with pytest.raises(ValueError, match=message):
        from_peft(tmp_path, base("phi3"))


def test_a_file_without_tensors_holds_no_adapter(tmp_path):
    shutil.copy(FOLDER / "adapters" / "phi3" / "adapter_config.json", tmp_path)
    safetensors.numpy.save_file({}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="holds no adapter"):
        from_peft(tmp_path, base("phi3"))
