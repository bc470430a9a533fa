"""FlaxModel: a linen or NNX module of the user, with what every function takes from a Model."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
from jax import Array, lax

from .model import Model

FAMILY = "flax"  # in the record of a saved model
STATE = "state.jm"


@dataclasses.dataclass(frozen=True)
class ModuleConfig:
    """What a text needs to know of a user's module.

    `module` is the name of its class, `context` the most tokens that it takes, None if that is not
    known, `eos` the tokens that end a text, `inputs` the shapes of what it takes where that is not
    token ids, `cache(batch, length, dtype)` an empty cache; None if the module has none. A module
    that runs `by_token` takes no padding after a prompt.
    """

    module: str
    context: int | None = None
    eos: tuple[int, ...] = ()
    inputs: tuple[jax.ShapeDtypeStruct, ...] = ()
    cache: Callable | None = None
    by_token: bool = False
    family = FAMILY

    def to_dict(self) -> dict[str, Any]:
        """Plain values, without the cache, which is a function."""
        inputs = [[list(x.shape), str(x.dtype)] for x in self.inputs]
        fields = {"family": FAMILY, "module": self.module, "context": self.context}
        return fields | {"eos": list(self.eos), "inputs": inputs}


@dataclasses.dataclass(frozen=True, eq=False)
class FlaxModel(Model):
    """A `Model` that runs a module of the user; `jm.models.from_flax` makes one.

    `run(params, state, *args)` runs the module. `state` holds what is no parameter, such as the
    means of a batch norm: it is kept as it is, saved with the params, and never encoded.
    """

    config: ModuleConfig
    run: Callable
    state: Any

    def _forward(self, params: dict, *args: Any, **kwargs: Any) -> Any:
        return self.run(params, self.state, *args, **kwargs)

    def _check_ids(self, *args: Any, is_call: bool = True) -> None:
        """A module of any kind may take any input."""

    def _write(self, folder: pathlib.Path, params: dict) -> None:
        from ..io import checkpoint

        super()._write(folder, params)
        if jax.tree.leaves(self.state):
            checkpoint.save(folder / STATE, self.state)

    @functools.cached_property
    def logits_after(self) -> Callable:
        """`next_token_logits.logits_after` of this module; without a cache if `cache` is None.

        It is compiled once for all calls of `generate`, and forgotten with the model.
        """

        @functools.partial(jax.jit, donate_argnames="cache")
        def run(params, state, ids, cache, position, last) -> tuple[Array, Any]:
            rest = () if cache is None else (cache, position)
            out = dataclasses.replace(self, state=state).apply(params, ids, *rest)
            logits, cache = out if rest else (out, None)
            return lax.dynamic_index_in_dim(logits, last, axis=1, keepdims=False), cache

        return lambda params, ids, cache, position, *, last: run(
            params, self.state, ids, cache, position, last
        )
