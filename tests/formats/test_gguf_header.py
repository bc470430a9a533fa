"""Headers of GGUF files that are damaged, hostile, big-endian, or in several files."""

import os
import struct
import time

import gguf
import numpy as np
import pytest

from jaxmem.formats import gguf as gguf_format


def text(string):
    return struct.pack("<Q", len(string)) + string.encode()


def header(fields=b"", tensors=b"", *, counts=None, version=3):
    counts = counts or (int(bool(tensors)), int(bool(fields)))
    return struct.pack("<4sIQQ", b"GGUF", version, *counts) + fields + tensors


def array(kind, count, data=b""):
    return text("a") + struct.pack("<IIQ", 9, kind, count) + data


def tensor(name="w", shape=(32,), kind=0, offset=0):
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + sizes + struct.pack("<IQ", kind, offset)


HOSTILE = {
    "2^31 fields": (header(counts=(0, 2**31)), "2147483648 fields"),
    "2^60 tensors": (header(counts=(2**60, 0)), "1152921504606846976 tensors"),
    "2^31 strings": (header(array(8, 2**31)), "field 'a': .* hold no 2147483648 entries"),
    "2^62 numbers": (header(array(4, 2**62)), "field 'a': .* hold no 4611686018427387904"),
    "strings past the end": (header(array(8, 3)), "field 'a': .* bytes end in its header"),
    "numbers past the end": (header(array(4, 9, bytes(8))), "field 'a': .* bytes end"),
    "an array of arrays": (header(array(9, 1, bytes(12))), "field 'a': it is an array of arrays"),
    "an array of no type": (header(array(77, 1, bytes(12))), "type 77 is none of GGUF"),
    "a field of no type": (header(text("a") + struct.pack("<I", 13)), "type 13 is no type of GGUF"),
    "a string without end": (header(struct.pack("<Q", 2**63)), "end in its header"),
    "two fields of one name": (
        header((text("a") + struct.pack("<II", 4, 1)) * 2, counts=(0, 2)),
        "two fields 'a'",
    ),
    "an alignment of 0": (
        header(text("general.alignment") + struct.pack("<II", 4, 0)),
        r"general\.alignment is 0, expected a power of two",
    ),
    "an alignment of text": (
        header(text("general.alignment") + struct.pack("<I", 8) + text("x")),
        r"general\.alignment is 'x'",
    ),
    "two tensors of one name": (
        header(tensors=tensor() * 2, counts=(2, 0)),
        "tensor 'w' has two entries",
    ),
    "no axes": (header(tensors=tensor(shape=()) + bytes(8)), "'w' has 0 axes, expected 1 to 4"),
    "2^31 axes": (
        header(tensors=text("w") + struct.pack("<I", 2**31) + bytes(99)),
        "'w' has 2147483648 axes",
    ),
    "a type of no name": (header(tensors=tensor(kind=999)), "w is of type 999"),
    "half a block": (header(tensors=tensor(shape=(31,), kind=2)), "not in blocks of 32"),
    "a tensor past the end": (header(tensors=tensor(shape=(2**40,))), "w ends at byte"),
    "axes whose product overflows": (header(tensors=tensor(shape=(2**62, 4))), "w has shape"),
    "a large axis beside none": (header(tensors=tensor(shape=(0, 2**62))), "w has shape"),
    "tensors that overlap": (
        header(tensors=tensor() + tensor("v"), counts=(2, 0)) + bytes(999),
        "v begins at byte 0 of the tensors, expected 128",
    ),
    "version 1": (header(version=1), "version 1, expected GGUF 2 or 3"),
    "an older format": (b"tjgg" + bytes(40), "begins with b'tjgg'"),
    "big-endian": (struct.pack(">4sIQQ", b"GGUF", 3, 0, 0), "is big-endian; convert it with"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_header_is_named_at_once(kind, tmp_path):
    data, message = HOSTILE[kind]
    path = tmp_path / "some.gguf"
    path.write_bytes(data)
    start = time.perf_counter()
    with pytest.raises(ValueError, match=rf"some\.gguf cannot be read as a GGUF file: .*{message}"):
        gguf_format.gguf(path)
    assert time.perf_counter() - start < 1


def test_a_pipe_and_a_directory_are_refused_without_a_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.gguf")
    (tmp_path / "directory.gguf").mkdir()
    for name in ("pipe", "directory"):
        with pytest.raises(ValueError, match=rf"{name}\.gguf is a .* expected a regular file"):
            gguf_format.gguf(tmp_path / f"{name}.gguf")


@pytest.fixture
def parts(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama", split_max_tensors=1)
    writer.add_context_length(64)
    for i in range(3):
        writer.add_tensor(f"w{i}", np.full((2, 32), i, np.float32))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file):
        step()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(tmp_path.glob("*.gguf"))


@pytest.mark.parametrize("part", range(3))
def test_a_model_in_parts_is_read_whole_from_any_of_them(part, parts):
    file = gguf_format.gguf(parts[part])
    assert file.path == parts[0] and file.fields["llama.context_length"] == 64
    assert [float(file.tensors[f"w{i}"].load().mean()) for i in range(3)] == [0, 1, 2]
    assert file.blocks("w2").view("<f4").mean() == 2
    assert list(gguf_format.encoded_fields(parts[part], "llama.")) == ["llama.context_length"]


def test_a_missing_part_is_named(parts):
    parts[1].unlink()
    with pytest.raises(ValueError, match=r"00001-of-00003\.gguf is one of 3 parts, and "
                       r"m-00002-of-00003\.gguf is missing beside it"):  # fmt: skip
        gguf_format.gguf(parts[0])


def test_parts_that_are_renamed_or_not_of_one_model_are_refused(parts):
    parts[1].write_bytes(parts[2].read_bytes())
    with pytest.raises(ValueError, match=r"00002-of-00003\.gguf has split\.no .*\(2, 3\)"):
        gguf_format.gguf(parts[0])
    renamed = parts[0].rename(parts[0].with_name("model.gguf"))
    with pytest.raises(ValueError, match=r"model\.gguf is one of 3 parts, but its name .*rename"):
        gguf_format.gguf(renamed)


def test_bytes_after_the_last_tensor_are_named(tmp_path):
    data = header(tensors=tensor())
    path = tmp_path / "w.gguf"
    path.write_bytes(data + bytes(-len(data) % 32) + bytes(128) + b"more")
    with pytest.warns(UserWarning, match=r"w\.gguf: the last 4 bytes belong to no tensor") as seen:
        assert list(gguf_format.gguf(path).tensors) == ["w"]
    assert seen[0].filename == __file__  # the caller's line, not one of this package
