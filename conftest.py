"""Strict everywhere: 8 host devices, no silent promotion of dtypes or ranks."""

import gc
import importlib.metadata
import importlib.util
import os
import pathlib
import threading
from xml.etree import ElementTree

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8"
    + " --xla_cpu_parallel_codegen_split_count=1"  # a small program is compiled as one module
    # the emitters of 0.10 compile for twice as long; newer versions cannot go without them
    + " --xla_cpu_use_fusion_emitters=false" * ("0.10." in importlib.metadata.version("jax"))
)

import jax
import pytest

jax.config.update("jax_disable_most_optimizations", True)  # compiles in less time, runs slower
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
if jax.__version__.startswith("0.10."):  # a context takes half the time of lowering a program
    from jax._src.interpreters import mlir

    class Reused(threading.local):
        """A context serves ten programs of a thread, as it does in newer versions."""

        make, programs = mlir.make_ir_context, 0

        def __call__(self):
            if mlir.ir.Context.current is not None:  # lowering a program may run another one
                return Reused.make()
            if self.programs % 10 == 0:
                self.context = Reused.make()
            self.programs += 1
            return self.context

    mlir.make_ir_context = Reused()

collect_ignore = ["docs/_build", "docs/conf.py"]  # the second is for Sphinx
if importlib.util.find_spec("lm_eval") is None:  # the harness, which no other module wants
    collect_ignore.append("jaxmem/interop/lm_eval.py")
# They run in other libraries: some write fixtures, others are clients.
collect_ignore_glob = ["tests/reference/*.py", "tests/clients/*_logits.py"]
SHARED = pathlib.Path(__file__).parent / "../shared/data"


def pytest_addoption(parser):
    parser.addoption(
        "--quick-in",
        metavar="XML",
        help="leave out the longest tests, which took nine tenths of the time of an earlier run; "
        "XML is what --junitxml wrote then",
    )


def pytest_collection_modifyitems(config, items):
    if (path := config.getoption("--quick-in")) is None:
        return
    cases = ElementTree.parse(path).iter("testcase")
    seconds = {(case.get("classname"), case.get("name")): float(case.get("time")) for case in cases}
    left, chosen = sum(seconds.values()) / 10, set()
    for case in sorted(seconds, key=seconds.__getitem__):
        left -= seconds[case]
        if left > 0:
            chosen.add(case)
    module = lambda item: item.nodeid.split("::")[0].removesuffix(".py").replace("/", ".")
    is_quick = lambda item: (module(item), item.name) in chosen
    config.hook.pytest_deselected(items=[item for item in items if not is_quick(item)])
    items[:] = [item for item in items if is_quick(item)]


def pytest_collection_finish():
    """Modules are no garbage: to look through them again and again took a twelfth of the time."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


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


@pytest.fixture(autouse=True)
def guides_run_with_the_settings_of_users(request):
    """JAX's default promotion of dtypes and ranks, which optax's Adam needs."""
    if request.path.suffix != ".md":
        yield
        return
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
