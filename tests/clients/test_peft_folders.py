"""PEFT opens the adapters that we write, and computes what we compute; we open what it saves."""

import json
import pathlib
import subprocess

import jax
import numpy as np
import pytest
from checkpoints import random_tensors, write_single

import jaxmem as jm
from jaxmem.adapters import adapters, attach, with_alpha, with_magnitudes
from jaxmem.interop import from_peft, to_peft

SCRIPT = pathlib.Path(__file__).with_name("peft_logits.py")
IDS = np.array([[5, 17, 2, 300, 9]])


@pytest.mark.client
def test_peft_has_our_logits(torch_python, tmp_path):
    if not any(torch_python.parents[1].glob("lib/python*/site-packages/peft")):
        pytest.skip("wants peft beside transformers")
    scale = lambda name, w: w if w.ndim == 1 else w / 8
    write_single(tmp_path, {name: scale(name, w) for name, w in random_tensors().items()})
    model = jm.models.load(tmp_path)
    key = jax.random.key(0)
    pairs = adapters(key, model.params, {".*attn/q.*": 6, ".*mlp.*": 3, ".*": 4}, "layers/.*kernel")
    drawn = lambda u: jax.random.normal(jax.random.key(u.size), u.shape) / 8
    pairs = {k: p | {"u": drawn(p["u"])} for k, p in pairs.items()}
    dora = with_magnitudes(model.params, pairs)
    dora = {k: p | {"m": p["m"] * 1.1} for k, p in dora.items()}
    scaled = lambda root: with_alpha(pairs, 8, root=root)
    forms = {
        "lora": (pairs, pairs, {}),
        "rslora": (scaled(True), pairs, {"alpha": 8, "root": True}),
        "alpha": (scaled(False), pairs, {"alpha": 8}),
        "dora": (dora, dora, {}),
    }
    for name, (_, written, options) in forms.items():
        to_peft(tmp_path / name, written, model, **options)
    folders = [tmp_path / name for name in forms]
    command = [torch_python, SCRIPT, json.dumps(IDS.tolist()), tmp_path, *folders]
    environment = {"PATH": "", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    for name, (attached, _, _) in forms.items():
        ours = np.asarray(model.apply(attach(model.params, attached), IDS))
        np.testing.assert_allclose(np.load(tmp_path / f"{name}.npy"), ours, atol=1e-5)
        again = from_peft(tmp_path / f"{name}.again", model)
        assert jax.tree.all(
            jax.tree.map(lambda a, b: np.allclose(a, b, rtol=1e-6), again, attached)
        )
