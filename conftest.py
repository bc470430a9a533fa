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
    "tests/reference/make_saved.py",  # imports jaxmem 0.1.0, and writes fixtures
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
    """The same for the examples of every module and guide."""
    path = request.path
    if "guides" in path.parts or ("tests" not in path.parts and path.suffix == ".py"):
        request.getfixturevalue("quickly_compiled")


@pytest.fixture(autouse=True)
def guides_run_with_the_settings_of_users(request):
    """JAX's default promotion of dtypes and ranks, which optax's Adam needs."""
    if request.path.suffix != ".md":
        yield
        return
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
