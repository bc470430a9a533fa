"""A gain and a direction become the weight that PyTorch makes of them."""

import numpy as np
import pytest

from jaxmem.core.lazy import Lazy
from jaxmem.formats import weight_norm


def lazy(*shape):
    w = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return Lazy(shape, w.dtype, lambda _: w)


@pytest.mark.parametrize("ends", weight_norm._ENDS)
def test_directions_have_the_length_of_the_gain(ends):
    tensors = {f"c{end}": x for end, x in zip(ends, (lazy(1, 1, 4), lazy(6, 3, 4)))}
    tensors["c.bias"] = lazy(6)
    joined = weight_norm.joined(tensors)
    assert set(joined) == {"c.weight", "c.bias"}
    w, gain = joined["c.weight"].load(), tensors[f"c{ends[0]}"].load()
    np.testing.assert_allclose(np.sqrt((w * w).sum((0, 1))), np.abs(gain[0, 0]), rtol=1e-6)


def test_a_direction_of_zeros_stays_zero_and_a_gain_alone_stays():
    zeros = Lazy((2, 2), np.dtype("float32"), lambda _: np.zeros((2, 2), np.float32))
    joined = weight_norm.joined(
        {"c.weight_g": lazy(1, 2), "c.weight_v": zeros, "d.weight_g": zeros}
    )
    assert not joined["c.weight"].load().any() and "d.weight_g" in joined


def test_a_gain_of_another_rank_is_refused():
    with pytest.raises(ValueError, match=r"c.weight_g has shape \(4,\), expected 3 axes"):
        weight_norm.joined({"c.weight_g": lazy(4), "c.weight_v": lazy(6, 3, 4)})
