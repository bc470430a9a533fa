"""A small Llama that is loaded from a safetensors file."""

import pytest
from checkpoints import random_tensors, write_single

from jaxmem.models.loading import load


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    write_single(folder, random_tensors())
    return load(folder)
