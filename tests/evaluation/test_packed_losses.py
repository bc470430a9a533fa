"""The loss of a text in packed rows is that of the text alone."""

import cheap_jit
import jax
import jax.numpy as jnp
import numpy as np

import jaxmem as jm
from jaxmem.architectures import gpt2
from jaxmem.data.documents import from_arrays


def test_the_losses_are_those_of_each_text_alone():
    config = gpt2.Config(vocab=32, width=16, layers=1, heads=2, context=16)
    net = gpt2.module(config)
    params = cheap_jit.jit(net.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
    draw = np.random.default_rng(0)
    texts = [draw.integers(0, 32, n).tolist() for n in (7, 3, 9, 2, 12)]
    masks = [[i != 1 or len(x) < 4 for i in range(len(x))] for x in texts]
    rows = jm.data.PackedRows(from_arrays(texts, masks), 16)
    assert len(rows) == 3  # the last batch of two has one row
    found = jm.evaluation.document_losses(net.apply, params, rows, batch=2)

    padded = np.zeros((len(texts), 16), np.int32)
    for row, text in zip(padded, texts):
        row[: len(text)] = text
    log_p = np.asarray(jax.nn.log_softmax(cheap_jit.jit(net.apply)(params, padded)))
    for i, (text, mask) in enumerate(zip(texts, masks)):
        each = [-log_p[i, t - 1, text[t]] for t in range(1, len(text)) if mask[t]]
        np.testing.assert_allclose(found[i], np.mean(each), rtol=1e-4)
