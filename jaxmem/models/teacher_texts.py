"""generated_documents: texts that a teacher writes, as a training set."""

from collections.abc import Sequence

import jax
import numpy as np

from ..core.arguments import AT_LEAST_0, POSITIVE, ROW_OF_INTEGERS, Kind, takes
from ..data.documents import Documents, from_arrays
from .generation import generate
from .model import Model

PROMPTS = Kind(
    "a list of prompts, texts or rows of token ids",
    lambda x: (
        isinstance(x, Sequence | np.ndarray | jax.Array)
        and not isinstance(x, str)
        and all(isinstance(row, str) or ROW_OF_INTEGERS.accepts(row) for row in x)
    ),
)


@takes(prompts=PROMPTS, max_new_tokens=POSITIVE, temperature=AT_LEAST_0, batch=POSITIVE)
def generated_documents(
    model: Model,
    prompts: Sequence[str] | Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    top_p: float | None = None,
    batch: int = 8,
    seed: int = 0,
) -> Documents:
    """A document of each prompt and what the model writes after it, of which the latter is learnt.

    A student learns more of a teacher's texts than of as many written ones (Kim and Rush, 2016:
    distillation of sequences), so the set can be smaller.

    Args:
        model: the teacher, a decoder with weights.
        prompts: texts, or rows of token ids.
        max_new_tokens: the most tokens that are generated after a prompt.
        temperature: 0 takes the most probable token; above 0 tokens are drawn.
        top_p: draw among the fewest tokens whose probabilities add up to this.
        batch: prompts that are run together.
        seed: the same seed draws the same texts.

    Raises:
        ValueError: there are no prompts; or as `generate`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import jaxmem as jm
        >>> from jaxmem.architectures import llama
        >>> sizes = dict(vocab=4, width=8, ffn=8, layers=1, heads=1, kv_heads=1, head_dim=8)
        >>> config = llama.Config(**sizes)
        >>> init = jax.jit(llama.module(config).init)
        >>> params = init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
        >>> teacher = jm.models.Model(config, params, None, "random")
        >>> found = jm.models.generated_documents(teacher, [[1, 2]], max_new_tokens=2)
        >>> found[0]["mask"].tolist()
        [False, False, True, True]
    """
    prompts = list(prompts)
    if not prompts:
        raise ValueError("there are no prompts, expected at least one")
    end, ids, masks = set(getattr(model.config, "eos", ())), [], []
    for at in range(0, len(prompts), batch):
        written = generate(
            model,
            prompts[at : at + batch],
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed + at,
        )
        for prompt, row in zip(written.prompt, written.ids):
            ends = np.flatnonzero(np.isin(row, list(end)))
            new = row[: ends[0] + 1] if len(ends) else row  # a row is filled after its end
            ids.append(np.concatenate([prompt, new]))
            masks.append(np.repeat([False, True], [len(prompt), len(new)]))
    return from_arrays(ids, masks)
