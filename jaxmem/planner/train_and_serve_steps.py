"""build: the step that a Recipe stands for, which trains (all weights or LoRA) or serves.

Its abstract arguments (weights, optimizer state, cache of keys and values) are what plans count.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh

from ..adapters.lora import attach
from ..core.arguments import takes
from ..core.leaf import decode
from ..kv_cache.page_allocator import alloc
from ..kv_cache.page_pool import Pages
from ..models import KVCache, Model, load
from ..train.gradient_accumulation import accumulate
from .model_head import logits_of
from .model_limits import check_model
from .recipe import Recipe
from .recipe_adapters import adapter_optimizer, first_pairs, scaled_pairs, with_penalty
from .recipe_weights import (
    cache_with_host,
    encoded_shapes,
    encoded_weights,
    fetching_hidden,
    loss_of_form,
    weight_usage,
    with_host,
)
from .released_step import released_step
from .search_space import OPTIMIZERS
from .step_layout import StepLayout, step_mesh
from .step_losses import step_loss
from .training_batch import abstract_batch, fields, with_predictions
from .weight_update import WeightUpdate


@dataclasses.dataclass(frozen=True)
class Built:
    """The result of `build`: a step, its abstract arguments, and what makes real ones.

    `step` is jitted. A batch to train is ids (batch, seq), or what `jm.data.Batches` gives if the
    recipe is `packed`. `step` returns its first argument changed, in the same memory:

        train  step(state, batch) -> (state, loss)
        lora   step(state, params, batch) -> (state, loss)
        serve  step(cache, params, ids (batch, 1), position) -> (cache, next ids (batch, 1))
               with pages: step(pool, params, ids (batch, 1)) -> (pool, next ids (batch, 1))

    `arguments` are the step's arguments, abstract, each with its sharding. `programs` holds every
    program that runs, with its arguments: `step`, and to serve also `prompt`, which reads
    `recipe.prompt` tokens of each row. `init(params, key) -> (state or cache, params)` makes the
    first argument, and encodes dense params; on a mesh of devices its results are sharded. `loss`
    is the loss of a micro-batch: a function of what is trained and of the step's other arguments;
    None to serve.
    """

    recipe: Recipe
    step: Callable
    arguments: tuple
    programs: dict[str, tuple[Callable, tuple]]
    init: Callable
    loss: Callable | None = None

    @property
    def parts(self) -> dict[str, Any]:
        """The arguments of `step` by name: weights, optimizer, KV cache and so on."""
        first, *rest = self.arguments
        if self.recipe.task == "serve":
            return {"weights": rest[0], "KV cache": first, "batch": rest[1]}
        trained = {"optimizer": first["opt"], "batch": rest[-1]}
        if self.recipe.task == "train":
            return {"weights": first["params"]} | trained
        return {"weights": rest[0], "adapters": first["params"]} | trained

    @property
    def shardings(self) -> tuple:
        """The sharding of each argument of `step`; None on one device."""
        return jax.tree.map(lambda x: x.sharding, self.arguments)


@takes()
def build(
    recipe: Recipe,
    *,
    model: Model | None = None,
    mesh: Mesh | AbstractMesh | None = None,
    optimizer: optax.GradientTransformation | None = None,
    clip: float | None = None,
    skip_nonfinite: bool = False,
) -> Built:
    """The step that a recipe stands for. Nothing is allocated.

    Args:
        recipe: its values choose the step, see `Recipe`.
        model: used instead of loading `recipe.model`; a decoder of any family, or to train an
            encoder with the head of a masked language model.
        mesh: devices of `jm.mesh`, to run the step on; by default the mesh that the recipe
            names, which is abstract for a TPU or GPU: to compile for.
        optimizer: by default `optax.adamw(1e-4)`, or what `recipe.optimizer` says; its state has
            the form `recipe.state`.
        clip: the most that the global norm of a gradient may be; longer ones are shortened.
        skip_nonfinite: leave weights and optimizer as they are if the loss or the gradient has a
            number that is not finite; `state["skipped"]` counts such steps.

    Raises:
        ValueError: the model is no decoder, or the recipe asks for what its family cannot do (the
            message says what); `mesh` is not the recipe's, or the mesh does not divide the rows of
            a micro-batch.

    Example:
        >>> import jax, jaxmem as jm
        >>> from jaxmem.models import Model
        >>> from jaxmem.architectures import llama
        >>> sizes = dict(vocab=64, width=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8)
        >>> config = llama.Config(**sizes)
        >>> tiny = Model(config, llama.module(config), None, "tiny")
        >>> built = build(Recipe("tiny", "cpu", "train", 2, 16), model=tiny)
        >>> [x.shape for x in jax.tree.leaves(built.arguments[1])]
        [(2, 16)]
    """
    model = load(recipe.model) if model is None else model
    check_model(model, recipe)
    layout = StepLayout(step_mesh(recipe, mesh), model.config, recipe.shared)
    rows = recipe.batch // recipe.micro
    if recipe.task != "serve" and rows % layout.row_devices:
        raise ValueError(
            f"a batch of {recipe.batch} rows in {recipe.micro} micro-batches on {layout.mesh.size} "
            f"chips: {rows} rows at a time, expected a multiple of {layout.row_devices}"
        )
    if recipe.task == "serve":
        return _serve(recipe, model, layout)
    make = _released if recipe.release else {"train": _train, "lora": _lora}[recipe.task]
    optimizer = optimizer or adapter_optimizer(recipe, default_optimizer(recipe, model), 2)
    update = WeightUpdate(recipe, layout, optimizer, clip, skip_nonfinite)
    return make(recipe, model, layout, update)


def _train(recipe, model, layout, update):
    state = jax.eval_shape(update.start, encoded_shapes(recipe, model))
    places = layout.state_shardings(state)
    loss = step_loss(recipe, model)

    def init(params, key=None):
        params = encoded_weights(recipe, model, params)
        return update.hosted(layout.put(update.start(params), places)), params

    def step(state, batch):
        batch = with_predictions(batch, recipe.micro)
        value, slope = accumulate(loss, recipe.micro)(decode(state["params"]), batch)
        return update(state, value, slope, places), value

    step = jax.jit(step, donate_argnums=0)
    state = update.hosted(layout.put(state, places))
    arguments = (state, abstract_batch(recipe, layout, fields(model.config)))
    return Built(
        recipe, step, arguments, {"step": (step, arguments)}, init, loss_of_form(recipe, loss)
    )


def _released(recipe, model, layout, update):
    start, step, loss = released_step(recipe, model, update)
    state = jax.eval_shape(start, encoded_shapes(recipe, model))

    def init(params, key=None):
        params = encoded_weights(recipe, model, params)
        return start(params), params

    step = jax.jit(step, donate_argnums=0)
    arguments = (state, abstract_batch(recipe, layout, fields(model.config)))
    return Built(
        recipe, step, arguments, {"step": (step, arguments)}, init, loss_of_form(recipe, loss)
    )


def _lora(recipe, model, layout, update):
    frozen = encoded_shapes(recipe, model)
    pairs = jax.eval_shape(
        lambda k, params: first_pairs(recipe, k, params), jax.random.key(0), frozen
    )
    state = jax.eval_shape(update.start, pairs)
    places = layout.state_shardings(state, pairs=True)
    loss = step_loss(recipe, model)

    def init(params, key):
        params = encoded_weights(recipe, model, params)
        pairs = first_pairs(recipe, key, params)
        state = layout.put(update.start(pairs), places)
        return update.hosted(state), layout.weights(params)

    def loss_of_pairs(pairs, params, batch):
        return loss(attach(params, scaled_pairs(recipe, pairs)), batch)

    def step(state, params, batch):
        of_batch = lambda pairs, batch: loss_of_pairs(pairs, params, batch)
        batch = with_predictions(batch, recipe.micro)
        value, slope = accumulate(of_batch, recipe.micro)(state["params"], batch)
        slope = with_penalty(recipe, state["params"], slope)
        return update(state, value, slope, places), value

    step = jax.jit(step, donate_argnums=0)
    batch = abstract_batch(recipe, layout, fields(model.config))
    arguments = (update.hosted(layout.put(state, places)), layout.weights(frozen), batch)
    return Built(recipe, step, arguments, {"step": (step, arguments)}, init, loss_of_pairs)


def default_optimizer(
    recipe: Recipe, model: Model, rate: optax.ScalarOrSchedule | None = None
) -> optax.GradientTransformation:
    """The optimizer of a recipe, with a learning rate or the one that plans are compiled with."""
    make, usual = OPTIMIZERS[recipe.optimizer]
    is_trained = recipe.task == "train" and recipe.optimizer == "scale"
    usage = {"uses": weight_usage(model)} if is_trained else {}  # pairs have names that say enough
    return make(usual if rate is None else rate, **usage)


def _serve_pages(recipe, model, layout):
    config, bits = model.config, recipe.cache_bits
    how = Pages(None if bits == 16 else bits)
    place = lambda params: with_host(recipe, layout.weights(params))
    params, run = place(encoded_shapes(recipe, model)), fetching_hidden(recipe, config)
    sizes = {"rows": recipe.batch, "most": -(-recipe.seq // how.size), "dtype": jnp.bfloat16}
    empty = lambda: how.empty(config, recipe.pages, **sizes)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(pool, params, ids):
        pool, _ = alloc(pool, jnp.full(recipe.batch, ids.shape[1], jnp.int32))
        x, pool = run(params, ids, pool)
        with jax.named_scope("logits"):
            logits = logits_of(config, params, x[:, -1:])
        return pool, jnp.argmax(logits, axis=-1).astype(jnp.int32)

    pool = cache_with_host(recipe, jax.eval_shape(empty))
    arguments = lambda tokens: (pool, params, layout.rows((recipe.batch, tokens), jnp.int32))
    prompt = min(recipe.prompt, recipe.seq)
    programs = {"step": (step, arguments(1)), "prompt": (step, arguments(prompt))}

    def init(params, key=None):
        return cache_with_host(recipe, empty()), place(encoded_weights(recipe, model, params))

    return Built(recipe, step, arguments(1), programs, init)


def _serve(recipe, model, layout):
    if recipe.pages is not None:
        return _serve_pages(recipe, model, layout)
    config, bits = model.config, recipe.cache_bits
    place = lambda params: with_host(recipe, layout.weights(params))
    params, run = place(encoded_shapes(recipe, model)), fetching_hidden(recipe, config)
    sizes = (recipe.batch, recipe.seq, jnp.bfloat16)
    empty = lambda: config.cache(*sizes) if bits == 16 else KVCache(bits).empty(config, *sizes)
    cache = cache_with_host(recipe, jax.eval_shape(empty))
    places = layout.cache_shardings(cache, recipe.batch)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(cache, params, ids, position):
        x, cache = run(params, ids, cache, position)
        with jax.named_scope("logits"):
            logits = logits_of(config, params, x[:, -1:])
        return layout.keep(cache, places), jnp.argmax(logits, axis=-1).astype(jnp.int32)

    cache = layout.put(cache, places)
    position = jax.ShapeDtypeStruct((), jnp.int32)
    arguments = lambda tokens: (
        cache,
        params,
        layout.rows((recipe.batch, tokens), jnp.int32),
        position,
    )
    prompt = min(recipe.prompt, recipe.seq)
    programs = {"step": (step, arguments(1)), "prompt": (step, arguments(prompt))}

    def init(params, key=None):
        cache = cache_with_host(recipe, layout.put(empty(), places))
        return cache, place(encoded_weights(recipe, model, params))

    return Built(recipe, step, arguments(1), programs, init)
