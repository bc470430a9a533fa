"""An optimizer names the option that it cannot take."""

import numpy as np
import pytest

import jaxmem as jm


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"learning_rate": np.ones(2)}, ValueError, "learning_rate is a ndarray"),
        ({"heads": {"q": "8"}}, TypeError, "heads of 'q' is '8', expected an int of at least 1"),
    ],
)
def test_adam_mini_names_a_wrong_option(options, error, message):
    with pytest.raises(error, match=message):
        jm.optimizers.adam_mini(**{"learning_rate": 1e-3} | options)
