"""A compressed model is asked in the programs of the dense one where it answers the same there."""

import dataclasses

import jax
import numpy as np
from reference_models import reference

import jaxmem as jm
from jaxmem.architectures import llama
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
