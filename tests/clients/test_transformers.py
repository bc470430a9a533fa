"""transformers opens int4 and int8 checkpoints that we write, and computes what we compute."""

import json
import pathlib
import subprocess

import jax
import numpy as np
import pytest
from checkpoints import random_tensors, write_single

import jaxmem as jm

SCRIPT = pathlib.Path(__file__).with_name("transformers_logits.py")
IDS = np.array([[5, 17, 2, 300, 9]])
FORMS = {
    "int4": ({"layers/.*kernel": jm.Int(4, group=32)}, True),
    "int4 rows": ({"layers/.*kernel": jm.Int(4)}, True),
    "int8": ({"layers/.*kernel": jm.Int(8)}, True),
    "int8 codes": ({"layers/.*kernel": jm.Int(8)}, False),
}


@pytest.mark.client
def test_transformers_has_our_logits_of_integers(torch_python, tmp_path):
    write_single(tmp_path, random_tensors())
    model, run = jm.models.load(tmp_path), None
    run = jax.jit(model.apply)
    uses, ours = jm.uses(model.apply, model.tensors, IDS), {}
    for name, (rules, packed) in FORMS.items():
        encoded = jm.encode(model.tensors, jm.choose(model.tensors, rules), uses)
        written = jm.interop.to_compressed_tensors(tmp_path / name, model, encoded, packed=packed)
        assert not written.decoded
        ours[name] = np.asarray(run(jm.decode(encoded), IDS))
    folders = [tmp_path / name for name in FORMS]
    command = [torch_python, SCRIPT, json.dumps(IDS.tolist()), *folders]
    environment = {"PATH": "", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    for name, logits in ours.items():
        error = np.abs(np.load(tmp_path / f"{name}.npy") - logits).max() / np.abs(logits).max()
        assert error < 1e-3, name
