"""Strict everywhere: 8 host devices, no silent promotion of dtypes or ranks."""

import os
import pathlib

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

collect_ignore = [
    "docs/_build",
    "docs/conf.py",  # for Sphinx
    "tests/reference/make_reference.py",  # imports torch, and writes fixtures
]
SHARED = pathlib.Path(__file__).parent / "../shared/data"


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of development texts and models beside the checkout, where there is one."""
    if not SHARED.exists():
        pytest.skip("wants ../shared/data, which is not beside this checkout")
    return SHARED


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Compiled programs go when their file is done: all of them together are over 5 GB."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="module")
def quickly_compiled(forget_programs):
    """A file's programs are compiled in less time, to run slower: most of its time is compiling."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(autouse=True, scope="module")
def examples_quickly_compiled(request):
    """The same for the examples of every module."""
    if "tests" not in request.path.parts and request.path.suffix == ".py":
        request.getfixturevalue("quickly_compiled")
