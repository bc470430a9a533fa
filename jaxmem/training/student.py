"""distill: a student learns from what a teacher says of texts that the student itself writes."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from ..core.arguments import POSITIVE, Kind, check_fields, takes
from ..core.leaf import is_encoded
from ..data.packed_rows import PackedRows
from ..models import Model
from ..models.teacher_texts import PROMPTS, generated_documents
from ..planner.model_head import finished, head_matrix, hidden
from ..planner.training_batch import model_inputs
from ..train.chunked_logits import Logits, chunked
from ..train.teacher_losses import Divergence, teacher_divergence

_PROMPTS = Kind(PROMPTS.expected, lambda x: PROMPTS.accepts(x) and len(x) > 0)
_TEXTS = Kind("an iterator of batches, or None", lambda x: x is None or hasattr(x, "__next__"))


@dataclasses.dataclass(frozen=True)
class DistillOptions:
    """How a student learns from a teacher.

    Args:
        steps: updates of the student.
        batch: prompts of a step, and rows of a batch.
        width: tokens of a row, a prompt and what is written after it.
        share: how many of the steps learn from texts that the student writes; the others from the
            texts that are given.
        kind: "forward", "reverse" or "jsd", see `jm.train.teacher_divergence`.
        beta: the share of the teacher in the mixture of "jsd".
        temperature: what both logits are divided by.
        sampling_temperature: of the texts that the student writes.
        chunk: tokens of a row whose logits are in memory at a time.
        seed: of the texts and of which steps write them.

    Raises:
        ValueError: `share` or a temperature is out of range; or as `jm.train.teacher_divergence`.

    Example:
        >>> DistillOptions(100, share=0.5, kind="reverse").loss(jnp.zeros(4), jnp.zeros(4)).shape
        ()
    """

    steps: int
    _: dataclasses.KW_ONLY
    batch: int = 8
    width: int = 128
    share: float = 1.0
    kind: Divergence = "jsd"
    beta: float = 0.5
    temperature: float = 1.0
    sampling_temperature: float = 1.0
    chunk: int = 512
    seed: int = 0

    def __post_init__(self):
        sizes = dict.fromkeys(("steps", "batch", "width", "chunk"), POSITIVE)
        check_fields(self, **sizes)
        if not 0 <= self.share <= 1:
            raise ValueError(f"share is {self.share}, expected 0 to 1")
        if not self.sampling_temperature >= 0:
            raise ValueError(
                f"sampling_temperature is {self.sampling_temperature}, expected at least 0"
            )
        self.loss  # noqa: B018  its options are checked

    @property
    def loss(self) -> Callable[[Array, Array], Array]:
        """The loss of each token from the logits of both."""
        return teacher_divergence(temperature=self.temperature, kind=self.kind, beta=self.beta)


@takes(prompts=_PROMPTS, texts=_TEXTS)
def distill(
    student: Model,
    teacher: Model,
    prompts: Sequence[Any],
    *,
    options: DistillOptions,
    optimizer: optax.GradientTransformation | None = None,
    texts: Any = None,
    progress: Callable[[int, int, dict], None] | None = None,
) -> tuple[Model, list[float]]:
    """(the student after its steps, the loss of each): on-policy distillation.

    In each step the student writes after some of the prompts, the teacher says how it would go on
    after each of these tokens, and the student comes nearer (Agarwal et al., 2024: GKD). So it
    learns where its own texts go, which the teacher's or given texts do not show. Logits of neither
    are in memory as a whole, and the teacher may be encoded.

    Args:
        student: a decoder with dense weights.
        teacher: a decoder of the same vocabulary.
        prompts: texts, or rows of token ids; a step takes the next `options.batch` of them.
        options: how many steps, and of what.
        optimizer: `optax.adamw(1e-4)` by default.
        texts: an iterator of batches such as `jm.data.Batches`, for the steps that do not write.
        progress: called as `progress(step, steps, {"loss": loss, "written": bool})`.

    Raises:
        ValueError: teacher and student have other vocabularies; `options.share` is less than 1 and
            there are no texts; a prompt leaves no room in a row; the student is encoded.

    Example:
        >>> import optax
        >>> import jaxmem as jm
        >>> from jaxmem.architectures import llama
        >>> config = llama.Config(
        ...     vocab=8, width=8, ffn=8, layers=1, heads=1, kv_heads=1, head_dim=8
        ... )
        >>> blank = jm.models.Model(config, llama.module(config), None, "tiny")
        >>> student, teacher = (jm.training.fresh(blank, seed=seed) for seed in (0, 1))
        >>> options = jm.training.DistillOptions(1, batch=2, width=8)
        >>> learn = dict(options=options, optimizer=optax.sgd(0.1))
        >>> made, losses = jm.training.distill(student, teacher, [[1, 2]], **learn)
        >>> len(losses)
        1
    """
    check_same_vocabulary(student, teacher)
    if any(map(is_encoded, jax.tree.leaves(student.params, is_leaf=is_encoded))):
        raise ValueError(f"the student {student.source} is encoded, expected dense weights")
    if options.share < 1 and texts is None:
        raise ValueError(f"share is {options.share} and there are no texts, expected some")
    optimizer = optimizer or optax.adamw(1e-4)
    loss = _loss(student, teacher, options)

    @jax.jit
    def step(params, state, teacher_params, batch):
        value, slope = jax.value_and_grad(loss)(params, teacher_params, batch)
        updates, state = optimizer.update(slope, state, params)
        return optax.apply_updates(params, updates), state, value

    params, losses = student.params, []
    state, random = optimizer.init(params), np.random.default_rng(options.seed)
    turn = _turns(prompts, options.batch)
    for count in range(1, options.steps + 1):
        writes = random.random() < options.share
        if writes:
            current = dataclasses.replace(student, tensors=params)
            batch = _written(current, next(turn), options, options.seed + count)
        else:
            batch = {name: jnp.asarray(x) for name, x in next(texts).items()}
        params, state, value = step(params, state, teacher.params, batch)
        losses.append(float(value))
        if progress:
            progress(count, options.steps, {"loss": losses[-1], "written": bool(writes)})
    return dataclasses.replace(student, tensors=params), losses


def check_same_vocabulary(student: Model, teacher: Model) -> None:
    """Raises ValueError, with a token that differs, if two models have other vocabularies."""
    ours, theirs = (model.config.vocab for model in (student, teacher))
    if ours != theirs:
        raise ValueError(
            f"the student {student.source} has {ours} ids and the teacher {teacher.source} "
            f"{theirs}, expected one vocabulary"
        )
    if student.tokenizer is None or teacher.tokenizer is None:
        return
    ours, theirs = (model.tokenizer.get_vocab() for model in (student, teacher))
    for token in sorted({**ours, **theirs}):
        if ours.get(token) != theirs.get(token):
            raise ValueError(
                f"the token {token!r} is {ours.get(token)} in the student {student.source} and "
                f"{theirs.get(token)} in the teacher {teacher.source}, expected one vocabulary"
            )


def _turns(prompts: Sequence[Any], batch: int) -> Iterator[list[Any]]:
    """Yields `batch` of the prompts, in turn, without end."""
    at = 0
    while True:
        yield [prompts[(at + i) % len(prompts)] for i in range(batch)]
        at = (at + batch) % len(prompts)


def _written(model: Model, prompts: list[Any], options: DistillOptions, seed: int) -> dict:
    """A batch of what the model writes after prompts; the prompts are not learnt."""
    encode = lambda p: model.tokenizer.encode(p).ids if isinstance(p, str) else list(p)
    rows = [encode(prompt) for prompt in prompts]
    room = options.width - max(map(len, rows))
    if room < 1:
        raise ValueError(
            f"a prompt has {options.width - room} tokens, and a row takes {options.width}: nothing "
            "can be written after it"
        )
    texts = generated_documents(
        model,
        rows,
        max_new_tokens=room,
        temperature=options.sampling_temperature,
        batch=options.batch,
        seed=seed,
    )
    packed = [PackedRows([text], options.width)[0] for text in texts]  # a text a row, in order
    return {name: jnp.asarray(np.stack([row[name] for row in packed])) for name in packed[0]}


def _loss(student: Model, teacher: Model, options: DistillOptions) -> Callable:
    """loss(params, teacher's params, batch): the mean over what the batch predicts."""
    of_token = options.loss

    def logits(model, params, ids, where):
        x = hidden(model.config, params, ids, **where)
        head, axis = head_matrix(model.config, params)
        return Logits(x, head, axis=axis, finish=lambda y: finished(model.config, params, y))

    def loss(params, teacher_params, batch):
        ids, where, mask = model_inputs(batch)
        sides = (
            logits(student, params, ids, where),
            logits(teacher, jax.lax.stop_gradient(teacher_params), ids, where),
        )
        # the token before says what comes next
        counted = jnp.roll(mask, -1, axis=1).at[:, -1].set(False)
        values = chunked(of_token, sides, mask=counted, chunk=min(options.chunk, ids.shape[1]))
        return values.sum() / jnp.maximum(counted.sum(dtype=jnp.float32), 1.0)

    return loss
