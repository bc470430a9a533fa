"""A damaged GGUF file loads, or is one error that names the file; never anything else."""

import random
import struct

import jax
import pytest
from checkpoints import random_tensors, write_gguf

from jaxmem.core.lazy import is_lazy
from jaxmem.formats import gguf as gguf_format
from jaxmem.models import load

FILES = 25  # for each way to damage one
NUMBERS = (0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1)
PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "▁a"]
TOKENIZER = {"model": "llama", "tokens": PIECES, "token_type": [2, 3, 3] + [6] * 256 + [1] * 3}
TOKENIZER |= {"scores": [0.0] * 259 + [-3.0, -2.0, -1.0]}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of a whole file, and the length of its header."""
    path = write_gguf(tmp_path_factory.mktemp("gguf"), random_tensors(), tokenizer=TOKENIZER)
    places = gguf_format.gguf(path).places.values()
    return path.read_bytes(), min(place.offset for place in places)


def flipped(data, header, draw):
    at = draw.randrange(header)
    return data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]


def with_a_number(data, header, draw):
    at, form = draw.randrange(header - 8), draw.choice(["<I", "<Q"])
    number = struct.pack(form, draw.choice(NUMBERS) % 256 ** struct.calcsize(form))
    return data[:at] + number + data[at + len(number) :]


def cut(data, header, draw):
    return data[: draw.choice([draw.randrange(header), draw.randrange(len(data))])]


def shorter(data, header, draw):
    at = draw.randrange(header)
    return data[:at] + data[at + draw.randrange(1, 40) :]


def longer(data, header, draw):
    at = draw.randrange(header)
    return data[:at] + draw.randbytes(draw.randrange(1, 40)) + data[at:]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("damage", [flipped, with_a_number, cut, shorter, longer])
def test_a_damaged_file_loads_or_is_named(damage, whole, tmp_path):
    draw, path, named = random.Random(0), tmp_path / "damaged.gguf", 0
    for _ in range(FILES):
        path.write_bytes(damage(*whole, draw))
        try:
            for leaf in jax.tree.leaves(load(path).tensors, is_leaf=is_lazy):
                leaf.load()
        except ValueError as error:
            named += 1
            assert "damaged.gguf" in str(error)
    assert named
