"""A fit for a file format: the file has the bytes, and computes what the fit computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import random_tensors, write_single
from exported import IDS

import jaxmem as jm
from jaxmem.architectures import gpt2
from jaxmem.compression import fit_file_format
from jaxmem.models import load

WRITE = {"gguf": jm.interop.to_gguf, "compressed-tensors": jm.interop.to_compressed_tensors}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    write_single(folder, random_tensors())
    return load(folder)


@pytest.mark.parametrize(("target", "nbytes"), [("gguf", 64_000), ("compressed-tensors", 90_000)])
def test_the_file_of_a_fit_has_its_bytes_and_its_weights(target, nbytes, llama, tmp_path):
    fitted = jm.fit(llama, nbytes, options=jm.FitOptions(target=target))
    written = WRITE[target](tmp_path / "w.gguf", fitted.model)
    assert written.nbytes == fitted.file_nbytes and 0.95 * nbytes < written.nbytes <= nbytes
    assert not written.decoded and len(set(written.types.values())) > 2
    again = load(tmp_path / "w.gguf", encoded=True)
    run = jax.jit(llama.apply)
    logits = [run(jm.decode(params), IDS) for params in (again.params, fitted.params)]
    np.testing.assert_array_equal(*logits)
    with pytest.raises(ValueError, match=f"cannot hold it as {target}; the smallest file takes"):
        jm.fit(llama, 9_000, options=jm.FitOptions(target=target))


@pytest.mark.parametrize("target", WRITE)
def test_a_format_that_cannot_hold_the_model_is_named(target):
    other = jm.models.Model(gpt2.Config(vocab=64, width=32, layers=2, heads=4), {}, None, "small")
    with pytest.raises(ValueError, match=r"is a gpt2, and a GGUF|family 'gpt2' cannot"):
        fit_file_format.target_forms(other, target, {}, 10_000)


def test_weights_in_one_tensor_have_one_form(llama, monkeypatch):
    together = [("layers/attn/q/kernel", "layers/attn/k/kernel")]
    layout = fit_file_format.gguf_layout.GgufLayout
    monkeypatch.setattr(layout, "together", together)
    ways = jm.uses(llama.apply, llama.tensors, jax.ShapeDtypeStruct((1, 8), jnp.int32))
    forms = fit_file_format.target_forms(llama, "gguf", ways, 80_000)
    assert {forms.candidates[path] for path in together[0]} == {(jm.Affine(5, group=32),)}
