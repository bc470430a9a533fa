"""Strict everywhere: 8 host devices, no silent promotion of dtypes or ranks."""

import importlib.metadata
import os
import pathlib

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8"
    # the emitters of 0.10 compile for twice as long; newer versions cannot go without them
    + " --xla_cpu_use_fusion_emitters=false" * ("0.10." in importlib.metadata.version("jax"))
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


@pytest.fixture(autouse=True, scope="module")
def compiled_in_less_time(request, forget_programs):
    """Programs compile in less time, and run slower, where a file is not marked `optimized`."""
    jax.config.update(
        "jax_disable_most_optimizations", not request.node.get_closest_marker("optimized")
    )
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(autouse=True)
def guides_run_with_the_settings_of_users(request):
    """JAX's default promotion of dtypes and ranks, which optax's Adam needs."""
    if request.path.suffix != ".md":
        yield
        return
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
