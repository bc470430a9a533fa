"""Programs that open what we export, in the folder of JAXMEM_CLIENTS, which .ci/run fills.

It holds node_modules with node-llama-cpp, and venv with torch, transformers, compressed-tensors and
peft.
What could not be installed is not there, and the tests that want it are skipped.
"""

import os
import pathlib
import shutil

import pytest


@pytest.fixture(scope="session")
def clients():
    """The folder of the clients."""
    folder = os.environ.get("JAXMEM_CLIENTS")
    if not folder:
        pytest.skip("wants JAXMEM_CLIENTS, a folder of clients as .ci/run installs them")
    return pathlib.Path(folder)


@pytest.fixture(scope="session")
def llama_cpp(clients):
    """The folder whose node_modules has llama.cpp."""
    built = clients.glob("node_modules/@node-llama-cpp/*/bins/*/llama-addon.node")
    if not any(built) or not shutil.which("node"):
        pytest.skip(f"wants node, and node-llama-cpp with its programs in {clients}/node_modules")
    return clients


@pytest.fixture(scope="session")
def torch_python(clients):
    """The Python that has torch, transformers and compressed-tensors."""
    for package in ("torch", "transformers", "compressed_tensors"):
        if not any(clients.glob(f"venv/lib/python*/site-packages/{package}")):
            pytest.skip(f"wants {package} in {clients}/venv")
    return clients / "venv/bin/python"
