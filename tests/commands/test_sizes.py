"""Sizes are read and shown as people write them."""

import pytest

from jaxmem.commands.sizes import parse, show


@pytest.mark.parametrize("unit", ["B", "kB", "MB", "GB"])
def test_a_size_that_is_shown_reads_back(unit):
    assert show(parse(f"2.5 {unit}" if unit != "B" else "2 B")).endswith(f" {unit}")


@pytest.mark.parametrize("text", ["", "MB", "0", "-1MB", "1e6", "10x", "1 000", "1,5GB", "nan"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match="is no size, expected such as 100MB"):
        parse(text)
