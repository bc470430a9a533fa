"""Texts are padded to the widths that cost least, programs included."""

import itertools

import numpy as np
import pytest

from jaxmem.models.padded_shapes import padded_rows, padded_widths, rounded


def cost(widths, lengths, compiled, program):
    padded = sum(min(w for w in widths if w >= n) for n in lengths)
    return padded + program * len(set(widths) - set(compiled))


@pytest.mark.parametrize("program", [0, 40, 300, 10**6])
@pytest.mark.parametrize("compiled", [(), (32, 64)], ids=["new", "compiled"])
def test_no_other_widths_cost_less(program, compiled):
    for seed in range(5):
        lengths = np.random.default_rng(seed).integers(1, 90, 12).tolist()
        found = padded_widths(lengths, compiled, program=program, most=96)
        assert found == sorted(found) and found[-1] >= max(lengths)
        sizes = sorted({rounded(n) for n in lengths} | set(compiled))
        every = itertools.chain(*(itertools.combinations(sizes, i) for i in range(1, 5)))
        least = min(cost(w, lengths, compiled, program) for w in every if w[-1] >= max(lengths))
        assert cost(found, lengths, compiled, program) <= least


def test_no_width_is_over_the_most():
    assert padded_widths([3, 70], program=0, most=70) == [8, 70]
    assert [padded_rows(n, 8, program=0, most=4) for n in (1, 2, 3, 4)] == [1, 2, 4, 4]
