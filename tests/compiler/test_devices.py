"""GPU targets: each is described, and compiled for where the extra `gpu` is installed."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest

import jaxmem as jm
from jaxmem.compiler.devices import DEVICES, GPUS, target

PLUGIN_INSTALLED = importlib.util.find_spec("jax_cuda12_plugin") is not None


@pytest.mark.parametrize("gpu", GPUS)
def test_every_gpu_has_a_description(gpu):
    text = target(f"gpu {gpu}").options["target_config"]
    memory = DEVICES[gpu].memory
    assert text.count("{") == text.count("}") and f"device_memory_size: {memory}" in text


@pytest.mark.parametrize("gpu", GPUS)
def test_a_program_is_compiled_for_a_gpu_that_is_not_here(gpu, tmp_path, monkeypatch):
    if not PLUGIN_INSTALLED:
        pytest.skip("wants the extra gpu")
    monkeypatch.setenv("JAXMEM_CACHE", str(tmp_path))
    x = jax.ShapeDtypeStruct((256, 256), jnp.bfloat16)
    m = jm.memory(lambda x: jnp.sin(x @ x), x, device=f"gpu {gpu}")
    assert m.exact and m.arguments == m.outputs == jm.nbytes(x)
    assert m.flops == 2 * 256**3 and m.seconds > 0


def test_a_missing_extra_names_itself():
    if PLUGIN_INSTALLED:
        pytest.skip("the extra gpu is installed")
    with pytest.raises(ImportError, match=r"pip install \"jaxmem\[gpu\]\""):
        jm.memory(jnp.sin, jnp.ones(4), device="gpu h100")
