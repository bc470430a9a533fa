"""An entry of the compile cache is read whole, or is as if it were not there."""

import json

import pytest

from jaxmem.compiler.compile_subprocess import _cached_result


def test_a_result_is_read_from_the_cache(tmp_path):
    result = {"needed": 5, "program": "text"}
    (tmp_path / "a.json").write_text(json.dumps(result))
    assert _cached_result(tmp_path / "a.json") == result


@pytest.mark.parametrize(
    "data", [b"", b'{"needed": 5, "pro', b"[]", b"{}", b'{"program": "x"}', None]
)
def test_a_damaged_entry_is_made_anew(data, tmp_path):
    if data is not None:
        (tmp_path / "a.json").write_bytes(data)
    assert _cached_result(tmp_path / "a.json") is None
