"""A prompt of a recurrent layer is read in few steps, and gives what token by token it gives."""

import jax
import jax.numpy as jnp
import pytest
from cheap_jit import jit
from reference_models import member

from jaxmem.architectures.recurrent.chunked_scan import CHUNK_TOKENS, chunked_scan
from jaxmem.architectures.recurrent.gated_linear_recurrence import linear_recurrence
from jaxmem.architectures.recurrent.rwkv_mixing import running_sums
from jaxmem.architectures.recurrent.selective_scan import selective_scan
from jaxmem.models import Model

B, T, G, H, P, N = 2, CHUNK_TOKENS + 9, 2, 3, 4, 5


def draw(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def close(got, want):
    assert float(jnp.abs(got - want).max()) < 1e-5 * float(jnp.abs(want).max())


def test_a_scan_in_chunks_gives_what_it_gives_token_by_token():
    step, decay = jax.nn.softplus(draw(1, B, T, G, H)), -jnp.exp(draw(2, 1, 1, G, H, 1))
    directions = draw(3, B, T, N, G), draw(4, B, T, N, G)
    args = draw(0, B, T, G, H, P), step, decay, *directions, draw(5, B, N, G, H, P)
    jax.tree.map(close, jit(chunked_scan)(*args), jit(selective_scan)(*args))


def test_a_linear_recurrence_gives_what_it_gives_token_by_token():
    keep, taken, state = jax.nn.sigmoid(draw(0, B, 9, P)), draw(1, B, 9, P), draw(2, B, P)
    want = []
    for t in range(9):
        state = keep[:, t] * state + taken[:, t]
        want.append(state)
    close(jit(linear_recurrence)(keep, taken, draw(2, B, P)), jnp.stack(want, 1))


def test_running_sums_are_those_of_all_tokens_before():
    k, v, decay = 30 * draw(0, 1, 9, P), draw(1, 1, 9, P), -jnp.exp(draw(2, P))
    nothing = jnp.stack([jnp.zeros((1, P)), jnp.zeros((1, P)), jnp.full((1, P), -1e38)], 1)
    above, below, _ = jit(running_sums)(k, v, decay, nothing)
    ages = jnp.arange(9.0)[:, None] - jnp.arange(9.0)[None]
    exponents = jnp.where(ages[..., None] < 0, -jnp.inf, k + ages[..., None] * decay[None, None])
    close((above / below)[0, 1:], (jax.nn.softmax(exponents, 1) * v).sum(1))


def products_in_loops(jaxpr, length):
    """How many matrix products the loops over `length` steps have in their bodies."""
    count = 0
    for eqn in jaxpr.eqns:
        bodies = [p for p in jax.tree.leaves(eqn.params) if hasattr(p, "eqns")]
        bodies += [p.jaxpr for p in jax.tree.leaves(eqn.params) if hasattr(p, "jaxpr")]
        over_tokens = eqn.primitive.name == "scan" and eqn.params["length"] == length
        count += sum(str(body).count("dot_general") for body in bodies if over_tokens)
        count += sum(products_in_loops(body, length) for body in bodies)
    return count


@pytest.mark.parametrize("name", ["mamba", "rwkv", "qwen3_next"])
def test_the_products_of_a_prompt_are_of_all_tokens_at_once(name):
    config, params, _, _ = member(name)
    run = Model(config, params, None, name).apply
    ids, cache = jnp.zeros((1, 17), jnp.int32), config.cache(1, 32)
    jaxpr = jax.make_jaxpr(run)(params, ids, cache, 0)
    assert products_in_loops(jaxpr.jaxpr, 17) == 0 and "dot_general" in str(jaxpr)
