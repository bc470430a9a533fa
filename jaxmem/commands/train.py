"""train: a model trained on texts, by a recipe that the compiler proves to fit."""

import dataclasses
import functools
import json
import math
import pathlib
from typing import Annotated, Any, Literal

import jax
from tyro.conf import arg

import jaxmem as jm

from ..compiler.local_devices import local_device
from ..compiler.measurement import available_bytes
from ..io import multihost
from ..io.atomic import write_whole
from ..models import Model, packed_batches
from ..models.text_models import context
from ..parallel.axes import ROWS
from ..planner.model_limits import predicts_hidden_tokens
from ..planner.recipe import Recipe
from ..planner.search_space import micro_batches
from ..training import TensorBoard, Trained, TrainingOptions, fresh
from ..training import run as train
from ..training.training_run import ADAPTERS, MODEL
from . import options
from .adapter_files import write_adapters
from .hidden_tokens import held_out_tokens, hidden_in_part
from .mesh_option import MeshOption, parse
from .output import Output
from .plan import show as show_plan
from .processes import Coordinator, ProcessCount, ProcessId, join
from .sizes import Size, show

RATES = {"full": 3e-5, "lora": 2e-4, "pretrain": 1e-3}  # the highest learning rate
TASKS = {"full": "train", "lora": "lora", "pretrain": "train"}  # the task of the recipe
RANK, RANKS = 16, (64, 32, 16, 8, 4)  # of adapters
WIDTH = 1024  # tokens of a row, unless the model takes fewer


@dataclasses.dataclass(frozen=True)
class Train(options.SourceOptions):
    """Trains a model on texts, in the memory there is.

    The planner chooses optimizer state, remat, micro-batches and encoding, and the compiler proves
    that the step fits. A run that was stopped or killed goes on from its last checkpoint when the
    same line is given again.
    """

    _: dataclasses.KW_ONLY
    data: Annotated[tuple[str, ...], arg(metavar="FILES")]
    """Texts to learn: UTF-8 files, or .jsonl with `text`, `prompt` and `completion`, or
    `messages`."""
    out: Annotated[str, arg(metavar="DIR")]
    """A directory of this run: checkpoints, the loss of each step, and at the end the model."""
    task: Literal["full", "lora", "pretrain"] = "full"
    """Train all weights, adapters beside frozen weights, or new random weights."""
    adapter: Literal["lora", "rslora", "dora", "lora-fa", "adalora"] | None = None
    """What is trained beside the frozen weights for --task lora: pairs (lora unless given), pairs
    times the root of their rank, pairs with a magnitude for each output, pairs of which one half
    stays as it was drawn, or pairs whose ranks are chosen on the way, --rank on average."""
    rank: int | Literal["auto"] | None = None
    """The rank of adapters, 16 unless given; auto is the largest of 64, 32, 16, 8 and 4 with which
    a step fits."""
    merge: bool = False
    """Put the adapters into the weights at the end, in the same bytes, and say how far the result
    is from the model with adapters beside its weights."""
    memory: Size | None = None
    """The most memory to use on one device: all of an accelerator's, or what is free on a CPU,
    unless given."""
    batch: int = 8
    """Rows of a step, on all devices together."""
    seq: options.Count = None
    """Tokens of a row, 1,024 or what the model takes unless given. Texts are packed into rows, and
    longer ones are split."""
    steps: options.Count = None
    """Steps in all; one pass over the data unless given."""
    learning_rate: Annotated[float | None, arg(metavar="RATE")] = None
    """The highest one: 3e-5 for full, 2e-4 for lora, 1e-3 for pretrain unless given."""
    held_out: options.TextFile = None
    """A text that is not trained on, whose perplexity is measured."""
    evaluate_every: options.Count = None
    """Steps between measurements of --held-out; only after the last step unless given."""
    save_every: options.Count = 100
    """Steps between checkpoints."""
    recipe: Annotated[str | None, arg(metavar="FILE")] = None
    """A recipe that `jaxmem plan --out` wrote, or an earlier run; it is not planned again."""
    mesh: MeshOption = None
    processes: ProcessCount = None
    process_id: ProcessId = None
    coordinator: Coordinator = None
    seed: int = 0
    """Draws the order of the rows, and new weights."""
    track: Annotated[str | None, arg(metavar="DIR")] = None
    """A directory for event files of TensorBoard."""
    plot: Annotated[str | None, arg(metavar="FILE")] = None
    """The PNG file to draw the losses in."""

    def run(self, output: Output) -> dict | None:
        """Plans, trains, and shows the losses; the figures are returned as plain data.

        Of several processes the first one alone shows and returns them.
        """
        given = {"--adapter": self.adapter, "--rank": self.rank, "--merge": self.merge}
        wrong = [name for name, value in given.items() if value]
        if wrong and self.task != "lora":
            raise ValueError(f"{wrong[0]} is of adapters, but the task is {self.task}: --task lora")
        if self.evaluate_every and not self.held_out:
            raise ValueError("--evaluate-every wants --held-out FILE, which it measures")
        join(self.processes, self.process_id, self.coordinator)
        self._check_processes(jax.process_count())
        is_first = jax.process_index() == 0
        output = output if is_first else dataclasses.replace(output, quiet=True)
        writer = TensorBoard(self.track) if self.track and is_first else None
        model = self.load()
        held_out = self.held_out and held_out_tokens(model, self.held_out)
        model = fresh(model, seed=self.seed) if self.task == "pretrain" else model
        out, seq = pathlib.Path(self.out), self.seq or min(WIDTH, context(model))
        if seq > context(model):
            raise ValueError(
                f"--seq is {seq}, but {model.source} takes {context(model)} tokens at most"
            )
        files = [pathlib.Path(file) for file in self.data]
        with output.step("reading texts"):
            batches = packed_batches(model, files, width=seq, batch=self.batch, seed=self.seed)
        if predicts_hidden_tokens(model.config):
            batches = hidden_in_part(model, batches, self.seed)
        output.say(
            f"{len(batches.rows.documents):,} texts in {len(batches.rows):,} rows of {seq} tokens, "
            f"{batches.rows.waste:.1%} of them padding"
        )
        settings = TrainingOptions(
            self.steps or batches.steps_per_epoch,
            learning_rate=self.learning_rate or RATES[self.task],
            evaluate_every=self.evaluate_every,
            save_every=self.save_every,
            seed=self.seed,
        )
        text = multihost.from_first(lambda: self._recipe(model, seq, output).to_json())
        recipe = Recipe.from_json(text)
        with output.counting("training") as counted:
            shown = _Lines(output, counted)
            trained = train(
                model,
                batches,
                recipe,
                out=out,
                options=settings,
                held_out=held_out,
                mesh=parse(self.mesh) if self.mesh else None,
                limit=self.memory,
                writer=writer,
                progress=shown,
            )
        if not is_first:
            return None
        if self.plot:
            trained.plot().save(self.plot)
        figures = self._figures(trained, recipe, out, output)
        if self.task == "lora":
            if jax.process_count() > 1:  # the other processes have parts of these arrays
                trained = dataclasses.replace(
                    trained, adapters=jm.load(out / ADAPTERS), base=model.tensors
                )
            figures |= write_adapters(trained, next(batches)["ids"], out, output, self.merge)
        return figures

    def _check_processes(self, count: int) -> None:
        """Refuses what several processes cannot do together."""
        if count > 1 and not self.mesh:
            raise ValueError(
                f"{count} processes train on a mesh of their {jax.device_count()} devices: give "
                f"--mesh, such as --mesh fsdp={jax.device_count()}"
            )
        if count > 1 and self.merge:
            raise ValueError("--merge wants the weights in one process: train without it")

    def _recipe(self, model: Model, seq: int, output: Output) -> Recipe:
        """The recipe of the run: that of a file, or a planned one."""
        out = pathlib.Path(self.out) / "recipe.json"
        given = self.recipe or (out if out.exists() else None)
        if given is not None:
            recipe = Recipe.from_json(options.read(str(given)))
            wanted = {"batch": self.batch, "seq": seq, "task": TASKS[self.task], "packed": True}
            wanted |= {"adapter": self.adapter} if self.adapter else {}
            wanted |= {} if self.rank in (None, "auto") else {"rank": self.rank}
            for name, value in wanted.items():
                if getattr(recipe, name) != value:
                    raise ValueError(
                        f"{given} is a recipe with {name} {getattr(recipe, name)}, not {value}"
                    )
            return recipe
        mesh = parse(self.mesh) if self.mesh else None
        device = local_device(mesh.size if mesh else 1)
        limit = self.memory or (available_bytes() if device == "cpu" else None)
        axes = {k: v for k, v in mesh.shape.items() if v > 1} if mesh else None
        if predicts_hidden_tokens(model.config):
            with output.step("planning"):
                recipe = self._searched(model, device, seq, limit, axes)
        else:
            with output.step("planning"):
                planned = self._planned(
                    model,
                    device=device,
                    seq=seq,
                    limit=limit,
                    meshes=[axes] if axes else None,
                )
            show_plan(output, planned)
            recipe = planned.recipe
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, (recipe.to_json() + "\n").encode())
        return recipe

    def _planned(self, model: Model, **options: Any) -> jm.Planned:
        """The plan; with --rank auto that of the largest rank for which there is one."""
        options |= {"task": TASKS[self.task], "batch": self.batch, "packed": True, "most": 1}
        ranks = RANKS if self.rank == "auto" else (self.rank or RANK,)
        for rank in ranks:
            try:
                return jm.plan(model, rank=rank, adapter=self.adapter or "lora", **options)
            except ValueError:
                if rank == ranks[-1]:
                    raise
        raise AssertionError("unreachable")

    def _searched(
        self, model: Model, device: str, seq: int, limit: int | None, axes: dict[str, int] | None
    ) -> Recipe:
        """The first recipe to train an encoder that is proved to fit: fewer micro-batches first."""
        options = {"rank": RANK if self.rank in (None, "auto") else self.rank, "packed": True}
        options |= {"adapter": self.adapter or "lora", "mesh": axes}
        rows = self.batch // math.prod((axes or {}).get(axis, 1) for axis in ROWS)
        first = Recipe(model.source, device, TASKS[self.task], self.batch, seq, **options)
        change = functools.partial(dataclasses.replace, first)

        def step(**knobs):
            built = jm.build(change(**knobs), model=model)
            return built.step, built.arguments

        remats = [jm.Remat("none"), jm.Remat("full")]
        knobs = {"micro": micro_batches(max(rows, 1)), "remat": remats}
        return change(**jm.search(step, knobs, device=device, limit=limit).chosen.knobs)

    def _figures(self, trained: Trained, recipe: Recipe, out: pathlib.Path, output: Output) -> dict:
        """The figures of a run as plain data, which `output` shows as a table."""
        made = str(out / (ADAPTERS if self.task == "lora" else MODEL))
        speeds = sorted(row["tokens_per_second"] for row in trained.history)
        figures = {
            "steps": len(trained.history),
            "loss": trained.loss,
            "perplexity": trained.perplexity,
            "skipped": trained.skipped,
            "tokens_per_second": speeds[len(speeds) // 2],
            "predicted_bytes": trained.predicted,
            "grown_bytes": trained.grown,
        }
        grown = "" if trained.grown is None else f", grew by {show(max(trained.grown, 0))}"
        rows = [
            ("steps", figures["steps"]),
            ("loss, nats a token", _number(trained.loss, ".4f")),
            ("perplexity, held out", _number(trained.perplexity, ".4g") if self.held_out else "-"),
            ("steps skipped: not finite", trained.skipped),
            ("tokens a second", f"{figures['tokens_per_second']:.0f}"),
            ("memory of a step, predicted", show(trained.predicted) + grown),
        ]
        output.table(f"Trained: {trained.model.source}", ("", ""), rows)
        output.say(f"It is in {made}.")
        recipe = json.loads(recipe.to_json())
        return {"source": trained.model.source, "out": made, "recipe": recipe} | figures


def _number(x: float | None, form: str) -> str:
    return "not finite" if x is None else f"{x:{form}}"


class _Lines:
    """Shows a line of progress each tenth of the steps, and moves the bar each step."""

    def __init__(self, output: Output, counted):
        self._output, self._counted = output, counted

    def __call__(self, step: int, steps: int, numbers: dict) -> None:
        self._counted(step, steps)
        if "skipped" in numbers:
            self._output.note(
                f"  step {step:>6}  its loss or gradient is not finite: skipped, nothing changed"
            )
            return
        if step % max(1, steps // 10) == 0 or step == steps or "held_out_loss" in numbers:
            more = (
                f", held out {numbers['held_out_loss']:.4f}" if "held_out_loss" in numbers else ""
            )
            self._output.note(
                f"  step {step:>6}  loss {numbers['loss']:.4f}{more}  "
                f"{numbers['tokens_per_second']:.0f} tokens/s"
            )
