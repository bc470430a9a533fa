"""A pair merged into its weight: exact where it can be, and else near in the outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmem as jm
from jaxmem.adapters import adapters, attach, merge, with_magnitudes

KEY = jax.random.key(0)
W = jax.random.normal(KEY, (2, 32, 24))
MIX = jax.random.normal(jax.random.key(2), (8, 32))
X = jax.random.normal(jax.random.key(1), (64, 8)) @ MIX  # inputs of 8 directions


def logits(params, x):
    return jax.lax.scan(lambda x, w: (x, x @ w), x, params["kernel"])[1]


def tuned(base, size=0.02):
    pairs = adapters(KEY, base, 2)
    return {k: p | {"u": size * jax.random.normal(KEY, p["u"].shape)} for k, p in pairs.items()}


def made(base, pairs=None, **more):
    return merge(base, pairs or tuned(base), fn=logits, batches=[(X,)], **more)


@pytest.mark.parametrize("base", [W.astype(jnp.bfloat16), jm.Cast("bfloat16").encode(W)])
def test_a_sum_in_fewer_bits_is_said_to_be_cast(base):
    assert merge({"kernel": base}, tuned({"kernel": base})).how == {"kernel": "cast"}


@pytest.mark.parametrize("form", ["lora", "dora"])
def test_a_dense_weight_takes_the_sum(form):
    base = {"kernel": W}
    pairs = tuned(base)
    pairs = with_magnitudes(base, pairs) if form == "dora" else pairs
    found = made(base, pairs)
    whole = attach(base, pairs)["kernel"].decode()
    np.testing.assert_allclose(found.params["kernel"], whole, rtol=1e-6, atol=1e-6)
    assert found.how == {"kernel": "exact"} and abs(found.kl) < 1e-6


def test_a_sum_takes_the_pair_into_its_low_rank_part():
    base = {"kernel": jm.Sum((jm.Int(4), jm.LowRank(2))).encode(W)}
    pairs = tuned(base)
    found = made(base, pairs)
    np.testing.assert_allclose(
        found.params["kernel"].decode(), attach(base, pairs)["kernel"].decode(), atol=1e-5
    )
    assert found.how == {"kernel": "exact"} and found.nbytes > found.nbytes_before


FORMS = [jm.Int(4, group=16), jm.Int(8, symmetric=False), jm.Affine(4, group=16)]
FORMS += [jm.Codebook("nf4", group=16)]


@pytest.mark.parametrize("codec", FORMS, ids=str)
def test_codes_are_chosen_for_the_outputs_in_the_same_bytes(codec):
    base = {"kernel": codec.encode(W)}
    pairs = tuned(base, 0.3 if codec.group else 0.02)
    found = made(base, pairs)
    target = attach(base, pairs)["kernel"].decode()
    nearest = codec.encode(target)
    distance = lambda w: float(jnp.square(logits({"kernel": w - target}, X)).sum())
    assert distance(found.params["kernel"].decode()) < 0.3 * distance(nearest.decode())
    assert found.nbytes == found.nbytes_before and found.how == {"kernel": "rounded"}
    same = jax.tree.map(lambda a, b: a.shape == b.shape, found.params, base)
    assert jax.tree.all(same) and "1 rounded" in str(found)


@pytest.mark.parametrize("codec", [jm.Bitmask(0.5), jm.NM(2, 4), jm.Csr(0.3)], ids=str)
def test_a_sparse_leaf_keeps_its_places(codec):
    base = {"kernel": codec.encode(W)}
    pairs = tuned(base)
    found, kept = made(base, pairs), base["kernel"].decode() != 0
    target = attach(base, pairs)["kernel"].decode()
    np.testing.assert_allclose(
        found.params["kernel"].decode(), jnp.where(kept, target, 0), atol=1e-6
    )
    assert found.how == {"kernel": "support"} and found.kl > 0


def test_another_codec_encodes_the_merged_weight():
    base = {"kernel": W}
    found = made(base, codec=jm.GPTQ(jm.Int(4, group=16)))
    assert found.params["kernel"].shape == W.shape and found.how == {"kernel": "codec"}
    assert found.nbytes < found.nbytes_before / 5


@pytest.mark.parametrize(
    ("base", "more", "message"),
    [
        (jm.Int(2), {"most": 1e-9}, "nats a token from the attached one, more than 1e-09"),
        (jm.Int(2), {"most": 0}, "most is 0: expected a number above 0"),
        (jm.Int(2), {"fn": None}, "merge wants the stats of kernel, or fn and batches"),
        (jm.Planes(), {}, "kernel cannot take its pair: PlanesArray has no codes to choose"),
        (jm.Int(4), {"codec": jm.LowRank(24)}, "kernel cannot take its pair: rank 24 saves not"),
        (jm.Sum((jm.Int(4), jm.Int(4))), {}, "a sum takes a pair into a low-rank part"),
    ],
)
def test_what_cannot_be_merged_is_one_clear_error(base, more, message):
    params = {"kernel": base.encode(W)}
    with pytest.raises(ValueError, match=message):
        merge(params, tuned(params, 0.5), **({"fn": logits, "batches": [(X,)]} | more))
    with pytest.raises(ValueError, match="bottleneck adapter, which no weight can take"):
        merge(params, jm.adapters.bottlenecks(KEY, params, 2, ".*"))
