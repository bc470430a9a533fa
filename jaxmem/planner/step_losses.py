"""step_loss: the mean cross entropy of the next ids, or of the hidden ones of an encoder."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ..kv_cache.query_blocks import scores_within
from ..models import Model
from ..parallel.sharding_constraints import constrain
from ..train.chunked_cross_entropy import next_token_loss
from ..train.remat_policy import Remat, remat
from ..train.token_losses import cross_entropy
from ..train.token_tiles import tiled
from .model_head import finished, head_matrix, hidden
from .model_limits import predicts_hidden_tokens
from .recipe import Recipe
from .training_batch import model_inputs, share_of_mean

TILE = 2048  # ids whose logits exist at a time, in a step that releases gradients
SCORES = 2**26  # bytes of attention scores that exist at a time there, about


def step_loss(recipe: Recipe, model: Model, policy: Remat | None = None) -> Callable:
    """loss(params, batch), the mean over what a batch predicts, with the recipe's remat.

    `policy` is another remat than the recipe's.

    Logits of a decoder exist `recipe.chunk` positions at a time, or `TILE` ids of all positions if
    the recipe releases gradients, and so do `SCORES` bytes of attention scores; an encoder's head
    makes all logits of a micro-batch.
    """
    make = _of_hidden if predicts_hidden_tokens(model.config) else _of_next
    loss = make(recipe, model, policy or recipe.remat)
    if not recipe.release:
        return loss

    def with_few_scores(params, batch):
        with scores_within(SCORES):
            return loss(params, batch)

    return with_few_scores


def _of_next(recipe: Recipe, model: Model, policy: Remat) -> Callable:
    config = model.config
    run = lambda params, ids, where: hidden(config, params, ids, **where)
    body = remat(run if recipe.tile is None else tiled(run, recipe.tile), policy)
    # A bias of the head is trained, and tiles give it no gradient; encoded rows are read by eight.
    in_tiles = recipe.release and not getattr(config, "head_bias", False) and config.vocab % 8 == 0

    def loss(params, batch):
        head, axis = head_matrix(config, params)
        ids, where, mask = model_inputs(batch)
        x = constrain(body(params, ids, where))
        options = {"axis": axis, "chunk": recipe.chunk}
        options |= {} if mask is None else {"mask": mask}
        options |= {"tile": TILE} if in_tiles else {}
        logits = lambda products: finished(config, params, products)
        with jax.named_scope("loss"):
            value = next_token_loss(x, head, ids, **options, logits=logits)
        return value if mask is None else value * share_of_mean(batch)

    return loss


def _of_hidden(recipe: Recipe, model: Model, policy: Remat) -> Callable:
    run = lambda params, ids, where: model.apply(params, ids, **where)
    body = remat(run if recipe.tile is None else tiled(run, recipe.tile), policy)

    def loss(params, batch):
        ids, where, mask = model_inputs(batch)
        logits = body(params, ids, where)
        with jax.named_scope("loss"):
            values = jnp.where(mask, cross_entropy()(logits, batch["targets"]), 0.0)
        return values.sum() / jnp.maximum(mask.sum(dtype=jnp.float32), 1.0) * share_of_mean(batch)

    return loss
