"""A compressed model is asked in the programs of the dense one where it answers the same there."""

import dataclasses
import sys

import jax
import numpy as np
import pytest
from reference_models import reference

import jaxmem as jm
from jaxmem.architectures import llama
from jaxmem.evaluation import Task
from jaxmem.evaluation.card_inputs import tasks_of
from jaxmem.evaluation.card_rows import as_dense
from jaxmem.models import Model


def test_weights_are_decoded_where_products_round_no_inputs():
    config, params, _ = reference("llama2", llama)
    dense = Model(config, params, None, "dense")
    encode = lambda codec: jm.encode(params, jm.choose(params, {"layers/mlp/.*/kernel": codec}))
    codes = dataclasses.replace(dense, tensors=encode(jm.Int(8)))
    decoded = as_dense(codes, dense).params
    jax.tree.map(np.testing.assert_allclose, decoded, jm.decode(codes.params))
    rounding = dataclasses.replace(dense, tensors=encode(jm.Dynamic(jm.Int(8))))
    other = dataclasses.replace(codes, config=dataclasses.replace(config, theta=1.0))
    for model in (rounding, other, dense):
        assert as_dense(model, dense) is model


def test_a_package_that_a_metric_wants_is_missed_before_anything_is_measured(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    task = Task("say", "generation", ({"text": "a", "answer": "b"},), "{text}", metric="chrf")
    with pytest.raises(ImportError, match=r"jaxmem\[eval\]"):
        tasks_of([task], "quick", True)
