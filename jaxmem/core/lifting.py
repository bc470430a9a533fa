"""lift: run any JAX function on encoded leaves."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import Array, lax

from .arguments import FUNCTION, INTEGERS, Kind, takes
from .encoded_product import decoded, dot
from .leaf import is_encoded, with_integer_codes
from .named_leaf import NamedLeaf, without_name
from .paths import leaf_paths
from .replay import JaxprReplay, OnDecode
from .traced_mesh import stand_in

_ON_DECODE = Kind(
    "'allow', 'error' or a function",
    lambda x: callable(x) or (isinstance(x, str) and x in ("allow", "error")),
)


def _is_pair(x: Any, accepts: Callable[[Any], bool]) -> bool:
    """Whether `x` has two members, and `accepts` both."""
    return isinstance(x, tuple | list) and len(x) == 2 and all(map(accepts, x))


_OPERAND = Kind(
    "an array or an encoded leaf", lambda x: hasattr(x, "shape") and hasattr(x, "dtype")
)
_DIMS = Kind(
    "((axes of x, axes of w), (batch axes of x, batch axes of w))",
    lambda x: _is_pair(x, lambda pair: _is_pair(pair, INTEGERS.accepts)),
)


@takes(fn=FUNCTION, on_decode=_ON_DECODE)
def lift(fn: Callable, *, on_decode: OnDecode = "allow") -> Callable:
    """Makes `fn` accept encoded leaves wherever it takes arrays.

    `fn` is traced on the shapes that the leaves stand for, so it needs no change; each operation
    that meets an encoded leaf is then handed to the leaf (`dot`, `take`, ...), or to its decoded
    array where the leaf has no faster way. Compose freely with `jit`, `grad`, `vmap` and `remat`.
    A leaf that `fn` returns as it came stays encoded.

    `on_decode` says what happens when an operation needs the dense array: "allow" decodes that one
    weight under `jax.checkpoint`, "error" refuses, and a function is called with the primitive's
    name and the weight's path, before the weight is decoded.

    Raises:
        TypeError: with `on_decode="error"`, an operation has no encoded form; names both. Or the
            codes of a leaf are floats, because codes were averaged or scaled; names the weight.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmem as jm
        >>> model = lambda params, x: jax.nn.relu(x @ params["w"])
        >>> enc = {"w": jm.Int(8).encode(jnp.eye(4))}
        >>> jax.jit(jm.lift(model, on_decode="error"))(enc, jnp.ones((2, 4))).round(2)[0]
        Array([1., 1., 1., 1.], dtype=float32)
    """

    return _lifted(fn, JaxprReplay(on_decode))


def lift_inference(fn: Callable) -> Callable:
    """`lift` for a function that is not differentiated with respect to weights.

    Its scans over layers copy no layer that a compiled product reads (see `StackLayer`).
    """
    return _lifted(fn, JaxprReplay("allow", in_stack=True))


def _lifted(fn: Callable, replay: JaxprReplay) -> Callable:
    """`lift`, with the replay that runs the jaxpr."""

    @functools.wraps(fn)
    def lifted(*args, **kwargs):
        # 1. Leaves and arrays are traced; other arguments stay as they are.
        leaves, tree = jax.tree.flatten((args, kwargs), is_leaf=is_encoded)
        traced = [is_encoded(x) or isinstance(x, (jax.Array, np.ndarray)) for x in leaves]
        values = [x for x, t in zip(leaves, traced) if t]

        def flat(*arrays):
            rest = iter(arrays)
            a, k = tree.unflatten([next(rest) if t else x for x, t in zip(leaves, traced)])
            return fn(*a, **k)

        # 2. Trace `fn` on the shapes that the leaves stand for.
        stand_ins = [stand_in(x) if is_encoded(x) else jax.typeof(x) for x in values]
        jaxpr, out = jax.make_jaxpr(flat, return_shape=True)(*stand_ins)

        # 3. Replay the jaxpr with the leaves themselves, which know their paths for messages.
        arguments = (*args, *(kwargs[k] for k in sorted(kwargs)))
        names = [path for argument in arguments for path in leaf_paths(argument)]
        inputs = [
            NamedLeaf(with_integer_codes(x, path), path or "the argument") if is_encoded(x) else x
            for x, path, t in zip(leaves, names, traced)
            if t
        ]
        outs = replay.run(jaxpr.jaxpr, jaxpr.consts, *inputs)
        return jax.tree.structure(out).unflatten([without_name(v) for v in outs])

    return lifted


@takes(x=_OPERAND, w=_OPERAND, dims=_DIMS)
def dot_general(x: Any, w: Any, dims: Any, **kwargs) -> Array:
    """`lax.dot_general` where either side may be encoded; leaves that hold leaves call this.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> w = jm.Int(8).encode(jnp.eye(4))
        >>> jm.dot_general(jnp.ones((2, 4)), w, (((1,), (0,)), ((), ()))).shape
        (2, 4)
    """
    sizes = lambda side: [
        [operand.shape[a] if -operand.ndim <= a < operand.ndim else None for a in axes]
        for operand, axes in zip((x, w), side)
    ]
    if any(None in ours or ours != other for ours, other in map(sizes, dims)):
        raise ValueError(
            f"dot_general: dims is {dims} of x {x.shape} and w {w.shape}, expected axes of equal "
            "lengths"
        )
    y = dot(x, w, dims, **kwargs)
    return decoded(lambda x, w: lax.dot_general(x, w, dims, **kwargs), x, w) if y is None else y
