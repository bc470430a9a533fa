"""run: a model trained by the step of a recipe, with checkpoints from which it is continued."""

import dataclasses
import json
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from ..adapters.lora import attach
from ..compiler.measurement import growth
from ..core.arguments import ROW_OF_INTEGERS, Kind, takes
from ..core.leaf import decode, is_encoded
from ..io import multihost
from ..io.checkpoint import save
from ..io.fingerprint import fingerprint
from ..io.scalar_writers import JsonLines, ScalarWriter
from ..models import Model
from ..parallel.mesh import mesh as make_mesh
from ..planner.recipe import Recipe
from ..planner.recipe_adapters import adapter_optimizer, last_pairs
from ..planner.train_and_serve_steps import Built, build, default_optimizer
from .checked_batch import checked_batch, placed
from .first_batch import first_batch_hash
from .held_out_loss import HeldOut
from .resumable_batches import is_resumable, resumable
from .training_options import TrainingOptions
from .training_result import Trained

CHECKPOINTS, SCALARS, MODEL, ADAPTERS = "checkpoints", "scalars.jsonl", "model", "adapters.jm"
PEFT = "adapter"  # the folder of an adapter as PEFT reads it
MOST_SKIPPED = 10  # steps in a row


_BATCHES = Kind(
    "an endless iterator of batches with state() and restore(state), such as jm.data.Batches, or "
    "one of grain",
    is_resumable,
)
_HELD_OUT = Kind("token ids (tokens,), or None", lambda x: x is None or ROW_OF_INTEGERS.accepts(x))


@takes(batches=_BATCHES, held_out=_HELD_OUT)
def run(
    model: Model,
    batches: Any,
    recipe: Recipe,
    *,
    out: str | os.PathLike,
    options: TrainingOptions,
    held_out: Any = None,
    mesh: Mesh | None = None,
    limit: int | None = None,
    writer: ScalarWriter | None = None,
    progress: Callable[[int, int, dict], None] | None = None,
) -> Trained:
    """Trains `model` and writes it below `out`; a run that was killed there is continued.

    `out` gets `checkpoints`, `scalars.jsonl` with the numbers of each step, and at the end `model`,
    which `jm.models.load` and every command read, or `adapters.jm` for the task "lora". A step with
    a loss or gradient that is not finite changes nothing; its numbers have the count as "skipped".
    Many processes run it together, each with the same arguments but for its rows of the batches;
    `out` is in a file system that they share, and the first of them writes the numbers.

    Args:
        model: a decoder with dense weights, such as `jm.models.load` or `jm.training.fresh` gives;
            or an encoder with the head of a masked language model, on `jm.data.MaskedBatches`.
        batches: `jm.data.Batches`, or another endless iterator with its methods `state` and
            `restore`, or one of grain, such as `iter(dataset.repeat().to_iter_dataset())`. A batch
            has `recipe.batch` rows of `recipe.seq` tokens, or one of many processes has its
            share of them, as `Batches(shard=)` gives: ids (rows, tokens), or a dict of
            "ids", "segments", "positions" and "mask". Rows of several texts, with padding, or of
            which something is not learnt want a recipe that is `packed`.
        recipe: what the step is, such as `jm.plan` chose; its task is "train" or "lora".
        out: a directory of this run alone.
        options: how long and how fast.
        held_out: token ids (tokens,) of a text whose loss is measured, in rows of `recipe.seq`.
        mesh: devices to train on; by default those that the recipe names.
        limit: the most bytes that the compiled step may take on a device.
        writer: takes the numbers of each step, too.
        progress: called as `progress(step, steps, numbers)` after each step.

    Raises:
        ValueError: the recipe serves; `evaluate_every` has no text; many processes have no mesh; a
            batch has another shape than the recipe, or an id that the model does not know; the step
            takes more than `limit`; `out` holds another run, or one is at work there; the loss or
            its gradient was not finite for ten steps in a row.
        ConnectionError: another one of many processes is gone; all of them may be started again.
    """
    from .run_checkpoints import DATA, RunCheckpoints, locked  # imports orbax: a second

    if recipe.task == "serve":
        raise ValueError("the recipe is one to serve, expected one to train or of lora")
    if options.evaluate_every is not None and held_out is None:
        raise ValueError("evaluate_every wants held_out, the text whose loss is measured")
    out, batches = pathlib.Path(out), resumable(batches)
    mesh = _mesh(recipe, mesh)
    built = build(
        recipe,
        model=model,
        mesh=mesh,
        optimizer=_optimizer(recipe, model, options),
        clip=options.clip,
        skip_nonfinite=True,
    )
    measure = HeldOut(built, held_out, model, batches)
    state, frozen = built.init(_copied(model.params), jax.random.key(options.seed))
    frozen = [frozen] if recipe.task == "lora" else []
    step, predicted = _compiled(built, limit)
    like = built.arguments[-1]
    record = {"recipe": json.loads(recipe.to_json()), "model": model.source}
    record["options"] = dataclasses.asdict(options)
    record[DATA] = first_batch_hash(batches)
    record["weights (hash)"] = fingerprint(model.params)
    with (
        multihost.lost_process_named(),
        locked(out),
        RunCheckpoints(out / CHECKPOINTS, record) as checkpoints,
    ):
        first = checkpoints.latest or 0
        if first:
            state, data_state = checkpoints.restore(None if mesh is None else built.shardings[0])
            batches.restore(data_state)
        writers = _writers(out, first, writer)
        grown, in_a_row, skipped = None, 0, int(state["skipped"])
        for count in range(first + 1, options.steps + 1):
            batch = checked_batch(next(batches), recipe, model.config)
            batch = jax.tree.map(placed, batch, like)
            start = time.perf_counter()
            with growth(batch) as growing:
                state, loss = step(state, *frozen, batch)
                loss = float(loss)
            grown = growing.nbytes if count == first + 1 else grown
            numbers = {
                "loss": loss,
                "learning_rate": float(options.schedule(count - 1 - skipped)),
                "tokens_per_second": recipe.batch * recipe.seq / (time.perf_counter() - start),
            }
            last = count == options.steps
            if last or _is_due(count, options.evaluate_every):
                numbers |= measure(state["params"], *frozen)
            before, skipped = skipped, int(state["skipped"])
            in_a_row = in_a_row + 1 if skipped > before else 0
            if in_a_row:
                numbers["skipped"] = skipped
            if in_a_row == MOST_SKIPPED:
                raise ValueError(
                    f"the loss or the gradient of steps {count - in_a_row + 1} to {count} is not "
                    f"finite; lower the learning rate {options.learning_rate}, or look at the data"
                )
            for one in writers:
                one.write_scalars(count, numbers)
            if last or _is_due(count, options.save_every):
                checkpoints.save(count, state, batches.state())
            if progress:
                progress(count, options.steps, numbers)
        multihost.wait_for_all("jaxmem.training.run: all steps are written")
    history = tuple(JsonLines(out / SCALARS).history)
    counts = history, int(state["skipped"]), predicted, grown
    return _written(model, recipe, out, state["params"], frozen, counts)


def _mesh(recipe: Recipe, mesh: Mesh | None) -> Mesh | None:
    """The devices to train on, or None for one of them."""
    if mesh is None and recipe.axes:
        return make_mesh(**recipe.axes)
    if mesh is None and jax.process_count() > 1:
        raise ValueError(
            f"{jax.process_count()} processes train on a mesh: expected one, or a recipe with one"
        )
    return mesh


def _writers(out: pathlib.Path, first: int, writer: ScalarWriter | None) -> list[ScalarWriter]:
    """Where the numbers of steps after `first` go; of many processes, from the first one only."""
    if jax.process_index() > 0:
        return []
    return [JsonLines(out / SCALARS, after=first), *([writer] if writer else [])]


def _written(
    model: Model, recipe: Recipe, out: pathlib.Path, trained: Any, frozen: list, counts: tuple
) -> Trained:
    """The result of a run, whose weights or adapters are written below `out`."""
    if recipe.task == "lora":
        pairs = last_pairs(recipe, trained)
        save(out / ADAPTERS, pairs)
        made = dataclasses.replace(model, tensors=attach(frozen[0], pairs))
        return Trained(made, pairs, frozen[0], *counts)
    if recipe.weights == "split":  # models read the half in bfloat16
        trained = decode(trained)
    made = dataclasses.replace(model, tensors=trained)
    made.save(out / MODEL)
    return Trained(made, None, None, *counts)


def _optimizer(
    recipe: Recipe, model: Model, options: TrainingOptions
) -> optax.GradientTransformation:
    """The optimizer of a recipe, as the options say."""
    if recipe.optimizer == "adamw":
        return adapter_optimizer(recipe, options.optimizer, options.steps)
    if options.weight_decay:
        raise ValueError(
            f"weight_decay is {options.weight_decay}, but the optimizer of the recipe is "
            f"{recipe.optimizer!r}, which has none: expected 0"
        )
    made = default_optimizer(recipe, model, options.schedule)
    return adapter_optimizer(recipe, made, options.steps)


def _compiled(built: Built, limit: int | None) -> tuple[Callable, int]:
    """(the step for the devices that are here, bytes that it takes besides its arguments)."""
    compiled = built.step.lower(*built.arguments).compile()
    stats = compiled.memory_analysis()
    taken = stats.output_size_in_bytes + stats.temp_size_in_bytes - stats.alias_size_in_bytes
    needed = stats.argument_size_in_bytes + taken
    if limit is not None and needed > limit:
        raise ValueError(f"the step takes {needed:,} bytes here, more than the limit {limit:,}")
    return compiled, taken


def _copied(params: Any) -> Any:
    """The params; those in bfloat16 are copied, because a step takes its arguments' memory."""
    copy = lambda x: jnp.copy(x) if x.dtype == jnp.bfloat16 else x
    return jax.tree.map(lambda x: x if is_encoded(x) else copy(x), params, is_leaf=is_encoded)


def _is_due(count: int, every: int | None) -> bool:
    return every is not None and count % every == 0
