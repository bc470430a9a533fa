"""Programs that open what we export, in the folder of JAXMEM_CLIENTS, which .ci/run fills.

It holds node_modules with node-llama-cpp, and venv with torch, transformers and compressed-tensors.
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
    if not (clients / "node_modules/node-llama-cpp").is_dir() or not shutil.which("node"):
        pytest.skip(f"wants node, and node-llama-cpp in {clients}/node_modules")
    return clients


@pytest.fixture(scope="session")
def torch_python(clients):
    """The Python that has torch, transformers and compressed-tensors."""
    python = clients / "venv/bin/python"
    if not python.exists():
        pytest.skip(f"wants torch and transformers in {clients}/venv")
    return python
