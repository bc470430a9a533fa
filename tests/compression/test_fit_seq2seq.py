"""An encoder-decoder is fitted, generates, is saved, and loads as it was."""

import cheap_jit
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmem as jm
from jaxmem.architectures import seq2seq

T5 = dict(model_type="t5", is_encoder_decoder=True, vocab_size=64, d_model=64, d_kv=32, num_heads=2)
T5 |= dict(d_ff=64, num_layers=1)


@pytest.mark.parametrize("calibrated", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_t5_fits_into_5_bits_and_is_in_a_file_what_it_was(calibrated, tmp_path):
    config = seq2seq.Config.from_hf(T5)
    draw = np.random.default_rng(0)
    arguments = config.example_inputs(4)
    shapes = jax.eval_shape(seq2seq.module(config).init, jax.random.key(0), *arguments)["params"]
    normal = lambda x: (draw.standard_normal(x.shape) * x.shape[-1] ** -0.5).astype(np.float32)
    model = jm.models.Model(config, jax.tree.map(normal, shapes), None, "random")
    source, ids = (jnp.asarray(draw.integers(3, 64, (4, n)), jnp.int32) for n in (12, 8))
    mask = jnp.asarray(np.arange(12) < np.array([[12], [9], [12], [7]]))
    limit = int(sum(x.size for x in jax.tree.leaves(model.params)) * 5 / 8)
    fitted = jm.fit(model, limit, calibrate=[(source, ids, mask)] if calibrated else None)
    assert jm.nbytes(fitted.params) <= limit
    logits = cheap_jit.jit(model.apply)
    want, got = (logits(jm.decode(x), source, ids, mask) for x in (model.params, fitted.params))
    assert float(jnp.square(got - want).mean()) < 0.1 * float(want.var())
    written = jm.models.generate(fitted.model, source, max_new_tokens=5)
    fitted.model.save(tmp_path / "fitted")
    again = jm.models.load(tmp_path / "fitted")
    assert again.config == config and jm.nbytes(again.params) == jm.nbytes(fitted.params)
    same = jm.models.generate(again, source, max_new_tokens=5)
    np.testing.assert_array_equal(same.ids, written.ids)
    assert len(written.ids) == 4 and written.ids.shape[1] > 1
