"""Arrays that each device has in full are found in the compiled text, by name."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxmem as jm
from jaxmem.architectures import llama

CONFIG = llama.Config(vocab=64, width=32, ffn=80, layers=2, heads=4, kv_heads=4, head_dim=12)
IDS = (8, 24)
RULES = {".*layers/.*/kernel": P(None, None, "fsdp")}


def whole_arrays(mesh, rules, rows):
    """The arrays of 1 KiB and more that each device has whole in the model's forward pass."""
    net, ids = llama.module(CONFIG), jax.ShapeDtypeStruct(IDS, jnp.int32)
    params = jax.eval_shape(net.init, jax.random.key(0), ids)["params"]
    with_sharding = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
    params = jax.tree.map(with_sharding, params, jm.shardings(params, mesh, rules))
    ids = with_sharding(ids, NamedSharding(mesh, rows))
    return jm.replicated(
        jm.memory(lambda p, i: net.apply({"params": p}, i), params, ids), least=1024
    )


def test_our_models_replicate_no_activation_and_without_constraints_they_do():
    gathered = whole_arrays(jm.mesh(fsdp=8), RULES, P("fsdp"))
    assert {array.kind for array in gathered} == {"gathered"}
    assert all(array.times % CONFIG.layers == 0 for array in gathered)
    assert all("while/body" in array.source for array in gathered)
    unknown_mesh = Mesh(jax.devices(), "x")  # no axis that a model knows: it constrains nothing
    arrays = whole_arrays(unknown_mesh, {".*layers/.*/kernel": P(None, None, "x")}, P("x"))
    activations = [array for array in arrays if array.kind == "replicated"]
    assert (*IDS, CONFIG.width) in {array.shape for array in activations}
    assert any("layers/mlp" in array.source for array in activations)


def test_an_array_that_is_gathered_to_be_cut_again_is_named():
    mesh = jm.mesh(fsdp=4, tensor=2)
    constrain = lambda x, *spec: jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(*spec)))

    def awkward(x):
        return constrain(jnp.sin(constrain(jnp.sin(x), "tensor")).reshape(24, 80), None, "fsdp")

    x = jax.ShapeDtypeStruct(
        (48, 40), jnp.float32, sharding=NamedSharding(mesh, P("fsdp", "tensor"))
    )
    arrays = jm.replicated(jm.memory(awkward, x), least=1)
    assert ("rematerialised", (24, 80)) in {(array.kind, array.shape) for array in arrays}
    assert jm.replicated(jm.memory(jnp.sin, x), least=1) == []


def test_what_was_not_compiled_cannot_be_read():
    with pytest.raises(ValueError, match="nothing was compiled for tpu v5e:1x1"):
        jm.replicated(jm.Memory("tpu v5e:1x1", estimate=1))
