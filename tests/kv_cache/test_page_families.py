"""Every decoder family reads and writes a pool of pages, rows of other lengths side by side."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference_models import MEMBERS, member

import jaxmem as jm
from jaxmem.models import Model

CHUNK = 5


ENCODED = ("deepseek_v2", "jamba", "rwkv", "qwen3_next")
CASES = [(name, False) for name in MEMBERS] + [(name, True) for name in ENCODED]


@pytest.mark.parametrize(("name", "encoded"), CASES)
def test_rows_of_other_lengths_get_the_logits_of_the_whole_text(name, encoded):
    config, params, file, _ = member(name)
    model = Model(config, params, None, name)
    if encoded:
        plan = {r".*/kernel": jm.Int(4, group=8), r".*embedding": jm.Int(8)}
        params = jm.encode(params, jm.choose(params, plan))
    ids = jnp.asarray(file["ids"])[:1]
    ids = jnp.concatenate([ids, ids[:, ::-1]])
    steps = ids.shape[1]
    pool = jm.Pages(size=8).empty(config, pages=20, rows=3, most=4)
    cache = config.cache(2, pool.limit)  # dynamic frequencies are those of the longest text
    want, _ = jax.jit(model.apply)(jm.decode(params), ids, cache, 0)

    @jax.jit
    def read(params, ids, pool, tokens):
        pool, ok = jm.pages.alloc(pool, tokens)
        logits, pool = model.apply(params, ids, pool)
        return logits, pool, ok

    lengths = np.array([steps, 0, steps - 3])
    for start in range(0, steps, CHUNK):
        tokens = np.clip(lengths - start, 0, CHUNK)
        part = np.pad(np.asarray(ids)[:, start : start + CHUNK], ((0, 0), (0, CHUNK)))[:, :CHUNK]
        part = np.stack([part[0], part[0], part[1]])
        logits, pool, ok = read(params, part, pool, tokens)
        assert ok.all()
        for row, text in ((0, 0), (2, 1)):
            count = tokens[row]
            np.testing.assert_allclose(
                logits[row, :count], want[text, start : start + count], rtol=1e-3, atol=1e-3
            )
