"""LZW reads what it wrote, at every limit of its codes."""

import numpy as np
import pytest

import jaxmem as jm


@pytest.mark.parametrize("most", [4, 5, 16, 1 << 16])
@pytest.mark.parametrize("alphabet", [1, 4])
def test_symbols_are_read_again(most, alphabet):
    symbols = np.random.default_rng(0).integers(0, alphabet, 500)
    codes = jm.data.lzw_encode(symbols, alphabet, most=most)
    assert codes.max() < most
    np.testing.assert_array_equal(jm.data.lzw_decode(codes, alphabet, most=most), symbols)


def test_nothing_and_a_code_used_at_once_are_read():
    assert jm.data.lzw_decode(jm.data.lzw_encode([], 4), 4).tolist() == []
    assert jm.data.lzw_encode([0, 0, 0], 2).tolist() == [0, 2]
    assert jm.data.lzw_decode([0, 2], 2).tolist() == [0, 0, 0]


def test_what_is_no_code_is_refused():
    with pytest.raises(ValueError, match="code 9 is not among the 4"):
        jm.data.lzw_decode([1, 9], 4)
    with pytest.raises(ValueError, match="more than 3 symbols"):
        jm.data.lzw_decode([0, 2, 3], 2, longest=3)
    with pytest.raises(ValueError, match="expected 0 to 3"):
        jm.data.lzw_encode([4], 4)
    with pytest.raises(ValueError, match="at least the 4 symbols"):
        jm.data.lzw_encode([1], 4, most=3)
