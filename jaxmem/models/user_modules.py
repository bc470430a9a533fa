"""from_flax: a user's own linen or NNX module as a `Model`."""

import functools
import inspect
import os
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import linen
from flax.errors import ScopeCollectionNotFound
from jax import lax

from ..core.arguments import INTEGERS, OPTIONAL_TREE, Kind, takes
from ..core.paths import is_whole, paths
from ..io.json_fields import JsonFields, read_object
from .flax_model import FAMILY, STATE, FlaxModel, ModuleConfig
from .model import PARAMS, RECORD
from .tokenizer_files import read_chat_template, read_tokenizer

if TYPE_CHECKING:
    from flax import nnx
    from tokenizers import Tokenizer

# arguments of a call, by the names in use, and their values when nothing is trained
_WHEN_NOT_TRAINING = {
    "deterministic": True,
    "use_running_average": True,
    "train": False,
    "training": False,
    "is_training": False,
}

_PARAMS = Kind(
    "a tree of arrays, None, or the path of a saved directory",
    lambda x: isinstance(x, str | os.PathLike) or OPTIONAL_TREE.accepts(x),
)
_INPUTS = Kind(
    "a tuple of arrays or shapes",
    lambda x: isinstance(x, tuple | list) and all(hasattr(a, "dtype") for a in x),
)


@takes(params=_PARAMS, eos=INTEGERS, inputs=_INPUTS)
def from_flax(
    module: "linen.Module | nnx.Module",
    params: Any = None,
    tokenizer: "Tokenizer | None" = None,
    *,
    context: int | None = None,
    eos: Sequence[int] = (),
    inputs: Sequence[Any] = (),
    cache: Callable | None = None,
    options: Mapping[str, Any] | None = None,
) -> FlaxModel:
    """Your own module as a `Model`, which `fit`, `generate`, `save` and every function here take.

    The module is run as after training: dropout is off, and a batch norm uses its running means.
    What is no parameter (batch statistics, random states) is kept as it is and saved too. The
    module itself does not change. A module that maps ids (batch, tokens) to logits (batch, tokens,
    vocabulary) is a language model; functions of texts refuse any other.

    `Model.save` writes no code, so that loading runs none: give the module again, and the path of
    the directory in place of `params`.

    Args:
        module: a linen module, or an NNX module.
        params: the variables of a linen module, or its params alone; for an NNX module its params
            as a tree, its whole `nnx.state`, or None for those in the module; or the path of a
            saved directory, which then also gives the tokenizer, `context`, `eos` and `inputs`, if
            these are not given.
        tokenizer: a `tokenizers.Tokenizer`, or None.
        context: the most tokens that the module takes; texts are cut and generated up to this.
        eos: ids of the tokens that end a text.
        inputs: arrays or shapes of what the module takes, if this is not token ids; to trace with.
        cache: `cache(batch, length, dtype)` is an empty cache, and the module, called as
            `module(ids, cache, position)`, gives (logits, cache). None: the collection `cache` of a
            linen module with `decode=True`, if `params` are the variables of its `init`; without
            one the text is computed again for each token.
        options: other keyword arguments of each call. Arguments named `deterministic`, `train`,
            `training`, `is_training` or `use_running_average` are set already.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp, jaxmem as jm
        >>> module = nn.Sequential([nn.Embed(64, 32), nn.Dense(64)])
        >>> params = module.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
        >>> model = jm.models.from_flax(module, params, context=16)
        >>> jm.fit(model, 4_000).model.source
        'Sequential, a Flax module'
        >>> jm.models.generate(model, [1, 2, 3], max_new_tokens=5).ids.shape
        (1, 5)

    Raises:
        TypeError: `module` is neither; a linen module without params.
        ValueError: `context` is less than 1; an NNX module with `decode=True` and no `cache`; the
            params of an NNX module are not those that it has; a directory is not one of a user's
            module.
    """
    name = type(module).__name__
    source, state, recorded, template = f"{name}, a Flax module", None, {}, None
    by_token = False
    if context is not None and context < 1:
        raise ValueError(f"context is {context}, expected at least 1")
    if isinstance(params, str | os.PathLike):
        path = pathlib.Path(params)
        source, (params, state, recorded) = f"{path}, params of {name}", _read(path)
        tokenizer = read_tokenizer(path) if tokenizer is None else tokenizer
        template = read_chat_template(path)
    options = _options(module, options or {})
    if isinstance(module, linen.Module):
        run, params, state = _linen(module, params, state, options)
        if cache is None and "cache" in state:  # of a module with `decode=True`
            by_token, cache = True, functools.partial(_empty_cache, module, options)
            run = _by_token(module, options, cache)
    elif isinstance(module, getattr(sys.modules.get("flax.nnx"), "Module", ())):
        if cache is None and _decodes(module):
            raise ValueError(
                f"{name} has decode=True, and nothing keeps its cache: give it decode=False, or a "
                "call that takes and returns a cache, and from_flax(..., cache=)"
            )
        run, params, state = _nnx(module, params, state, options)
    else:
        raise TypeError(
            f"from_flax takes a linen or NNX module, got {name}; jm.fit takes (apply, params)"
        )
    settings = {
        "context": context,
        "eos": tuple(eos),
        "inputs": tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in inputs),
    }
    settings = recorded | {key: value for key, value in settings.items() if value}
    config = ModuleConfig(name, cache=cache, by_token=by_token, **settings)
    return FlaxModel(config, params, tokenizer, source, run, state, chat_template=template)


def _options(module: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """`options`, and the arguments of the module's call that say that nothing is trained."""
    call = inspect.signature(type(module).__call__)
    names = list(call.parameters)[1:]  # without self
    takes_any = any(p.kind is p.VAR_KEYWORD for p in call.parameters.values())
    for name in options:
        if not takes_any and name not in names:
            raise ValueError(
                f"options has {name!r}, and {type(module).__name__} takes {', '.join(names)}"
            )
    usual = {name: value for name, value in _WHEN_NOT_TRAINING.items() if name in names}
    return usual | dict(options)


def _linen(module: linen.Module, variables: Any, state: Any, options: dict) -> tuple:
    """(how it runs, its params, its other collections)."""
    if variables is None:
        raise TypeError(f"{type(module).__name__} is a linen module: give its params")
    is_box = lambda x: not is_whole(x) and isinstance(x, linen.meta.AxisMetadata)
    unbox = lambda x: (
        linen.meta.unbox(x) if is_box(x) else x
    )  # names of axes, from with_partitioning
    variables = jax.tree.map(unbox, variables, is_leaf=lambda x: is_whole(x) or is_box(x))
    if state is None and isinstance(variables, Mapping) and "params" in variables:
        state = {name: tree for name, tree in variables.items() if name != "params"}
        variables = variables["params"]

    def run(params: Any, state: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return module.apply({"params": params, **state}, *args, **options | kwargs)
        except ScopeCollectionNotFound as error:
            raise ValueError(
                "params lack a collection that the module reads, expected all variables of its "
                f"init, not its params alone: {error}"
            ) from error

    return run, variables, state or {}


def _empty_cache(module: linen.Module, options: dict, batch: int, length: int, _: Any) -> Any:
    """The module's collection `cache` before the first token, for texts of up to `length`."""
    init = lambda ids: module.init(jax.random.key(0), ids, **options)
    shapes = jax.eval_shape(init, jax.ShapeDtypeStruct((batch, length), jnp.int32))["cache"]
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)


def _by_token(module: linen.Module, options: dict, empty_cache: Callable) -> Callable:
    """How a module with `decode=True` runs: it takes one token at a time, and writes its cache."""

    def run(params: Any, state: Any, ids: Any, cache: Any = None, position: Any = 0) -> Any:
        def step(cache: Any, token: Any) -> tuple[Any, Any]:  # the cache counts the positions
            variables = {"params": params, **state, "cache": cache}
            out, new = module.apply(variables, token[:, None], mutable=["cache"], **options)
            return new["cache"], out[:, 0]

        start = empty_cache(*ids.shape, None) if cache is None else cache
        end, out = lax.scan(step, start, ids.T)
        out = jnp.moveaxis(out, 0, 1)
        return out if cache is None else (out, end)

    return run


def _decodes(module: "nnx.Module") -> bool:
    """Whether a part of the module writes its keys and values into itself."""
    from flax import nnx

    return any(getattr(part, "decode", None) is True for _, part in nnx.iter_graph(module))


def _nnx(module: "nnx.Module", params: Any, state: Any, options: dict) -> tuple:
    """(how it runs, its params, its other variables); both are plain nested dicts."""
    from flax import nnx

    module = nnx.merge(*nnx.split(module))  # the user's own module stays in its mode
    module.eval()
    graph, own_params, own_state = nnx.split(module, nnx.Param, ...)
    params_like, state_like = jax.tree.structure(own_params), jax.tree.structure(own_state)
    plain = lambda tree: nnx.to_pure_dict(tree) if isinstance(tree, nnx.State) else tree
    own_params, own_state = plain(own_params), plain(own_state)
    if isinstance(params, nnx.State):
        only_params, others = nnx.split_state(params, nnx.Param, ...)
        if own_state and set(paths(plain(others))) == set(paths(own_state)):  # the whole state
            params, others = only_params, plain(others)
            _check_shapes(own_state, others, type(module).__name__)
            state = others if state is None else state
    params = plain(params)
    params = own_params if params is None else params
    _check_shapes(own_params, params, type(module).__name__)

    def run(params: Any, state: Any, *args: Any, **kwargs: Any) -> Any:
        states = (params_like, params), (state_like, state)
        states = [like.unflatten(jax.tree.leaves(tree)) for like, tree in states]
        return nnx.merge(graph, *states)(*args, **options | kwargs)

    return run, params, own_state if state is None else state


def _check_shapes(expected: Any, params: Any, name: str) -> None:
    """Refuses params that have not the paths and the shapes of those in the module."""
    shapes = lambda tree: {
        path: tuple(x.shape)
        for path, x in zip(paths(tree), jax.tree.leaves(tree, is_leaf=is_whole))
    }
    expected, got = shapes(expected), shapes(params)
    for path in sorted(expected.keys() | got.keys()):
        if expected.get(path) != got.get(path):
            raise ValueError(
                f"{path} has shape {got.get(path, 'none')} in the params, expected "
                f"{expected.get(path, 'none')}, as in {name}"
            )


def _read(path: pathlib.Path) -> tuple[Any, Any, dict]:
    """(params, other state, the fields of `ModuleConfig`) in a directory that `save` wrote."""
    from ..io import checkpoint

    source = f"{path / RECORD}: "
    config = JsonFields(read_object(path / RECORD), source).object("config")
    if config.text("family") != FAMILY:
        raise ValueError(f"{path} has no params of a user's module: jm.models.load reads it")
    try:
        inputs = [jax.ShapeDtypeStruct(tuple(s), d) for s, d in config.data.get("inputs", ())]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{source}config.inputs: {error}") from error
    fields = {
        "context": config.integer("context", None),
        "eos": tuple(config.integers("eos")),
        "inputs": tuple(inputs),
    }
    state = checkpoint.load(path / STATE) if (path / STATE).exists() else {}
    return checkpoint.load(path / PARAMS), state, fields
