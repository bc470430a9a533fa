"""Pages: keys and values in pages of one size, of which each row of tokens holds only what it uses.

The pool is a pytree of fixed shapes (Kwon et al., 2023, PagedAttention). A table says which pages a
row has, in order; counts say how often a page is referred to; free pages are on a stack. Page 0 is
no one's: what is written for rows that are not there goes to it.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from ..core.arguments import INTEGER, Kind, check_fields, takes

LANES = 128  # columns of a TPU register
PAGE_UNIT = 8  # the tokens of a page are a multiple of this: rows of a TPU register
_CONFIG = Kind("the config of a decoder", lambda x: hasattr(x, "cache") and hasattr(x, "heads"))


def _are_integers(x: Any, ndim: int, also: type = np.integer) -> bool:
    """Whether `x` is an array of integers, traced or not, or lists of them, of `ndim` axes."""
    if not hasattr(x, "dtype"):
        if not isinstance(x, int | list | tuple) or isinstance(x, bool):
            return False
        x = np.asarray(x) if x not in ([], ()) else np.zeros(0, int)
    kinds = (np.integer, also)
    return x.ndim == ndim and any(jnp.issubdtype(x.dtype, kind) for kind in kinds)


COUNT = Kind("an integer", lambda x: INTEGER.accepts(x) or _are_integers(x, 0))
NUMBERS = Kind("integers (n,)", lambda x: _are_integers(x, 1))
ROWS = Kind("a mask (rows,) or integers (n,)", lambda x: _are_integers(x, 1, np.bool_))


@dataclasses.dataclass(frozen=True)
class Pages:
    """How a pool holds keys and values: in pages of `size` tokens, in floats.

    A page holds `size` tokens of one row in all layers. A row of n tokens takes ⌈n / size⌉ pages,
    of which less than one is empty.

    Args:
        bits: None for floats.
        size: tokens of a page, a multiple of 8.

    Raises:
        ValueError: a size that is no positive multiple of 8.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> config = jm.models.load("smollm2-135m").config
        >>> pool = jax.eval_shape(lambda: jm.Pages().empty(config, pages=64, rows=8, most=32))
        >>> pool.capacity, pool.stores[0].keys.shape  # heads of 64: keys and values side by side
        (64, (30, 65, 3, 64, 128))
    """

    bits: int | None = None
    _: dataclasses.KW_ONLY
    size: int = 64

    def __post_init__(self):
        check_fields(self)
        if self.bits is not None:
            raise ValueError(f"Pages takes bits None, got {self.bits}")
        if self.size <= 0 or self.size % PAGE_UNIT:
            raise ValueError(
                f"size is {self.size} tokens a page, expected a positive multiple of {PAGE_UNIT}"
            )

    @takes(config=_CONFIG)
    def empty(
        self, config: Any, pages: int, rows: int, most: int, dtype: DTypeLike = jnp.float32
    ) -> "PagePool":
        """A pool in which every page is free.

        Args:
            config: the configuration of a decoder.
            pages: how many pages rows can take; the null page is one more.
            rows: how many rows of tokens there are.
            most: the most pages of a row.
            dtype: of keys and values.

        Raises:
            ValueError: a number below 1.
            NotImplementedError: the model has recurrent layers, or caches latents.
        """
        counts = {"pages": pages, "rows": rows, "most": most}
        if wrong := {name: n for name, n in counts.items() if n < 1}:
            raise ValueError(f"a pool has {wrong}, expected at least 1 of each")
        for name in ("recurrence", "latent"):
            if getattr(config, name, None):
                raise NotImplementedError(
                    f"{self} holds keys and values of heads, not those of a model with "
                    f"`{name}`; use config.cache"
                )
        dense = jax.eval_shape(lambda: config.cache(1, self.size, dtype))["k"].shape
        layers, heads, width = dense[0], dense[2], dense[4]
        limit = most * self.size
        has_table = getattr(config, "positions", "learned") == "learned"  # or a GPT-2
        limit = min(limit, config.context) if has_table else limit
        zeros = lambda *shape: jnp.zeros(shape, jnp.int32)
        return PagePool(
            stores=(empty_store(layers, pages, heads, self.size, width, dtype),),
            table=zeros(rows, most),
            length=zeros(rows),
            room=zeros(rows),
            refs=zeros(pages + 1),
            stack=jnp.arange(pages, 0, -1, dtype=jnp.int32),
            top=jnp.int32(pages),
            options=self,
            limit=limit,
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PageStore:
    """The pages of one extent; its page 0 takes what is written for rows that are not there.

    Heads narrower than the lanes of a TPU have keys and values side by side in `keys`: a pool that
    is 64 wide would be copied as a whole, to another layout, by XLA for TPU.
    """

    keys: Array  # (L, N, K, P, h), or (L, N, K, P, 2h) with the values of a token after its key
    values: Array | None  # (L, N, K, P, h), or None

    @property
    def pages(self) -> int:
        """How many pages rows can take."""
        return self.keys.shape[1] - 1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PagePool:
    """The pages of all layers, and who has them. Functions of `jm.pages` give a changed pool.

    Donate it to the program that changes it, and it is changed in place. `length` counts the tokens
    that are written; a row has pages for `room` tokens. The pages of all extents (`stores`) have
    numbers from 1 on. `stack[:top]` are the free pages.

    Example:
        >>> import jaxmem as jm
        >>> from jaxmem.architectures import llama
        >>> sizes = dict(vocab=64, width=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8)
        >>> pool = jm.Pages(size=8).empty(llama.Config(**sizes), pages=10, rows=2, most=4)
        >>> pool.rows, pool.most, pool.size, pool.limit, int(pool.top)
        (2, 4, 8, 32, 10)
    """

    stores: tuple[PageStore, ...]
    table: Array  # (rows, most) int32: pages in order, 0 for none
    length: Array  # (rows,) int32
    room: Array  # (rows,) int32
    refs: Array  # (1 + capacity,) int32
    stack: Array  # (capacity,) int32
    top: Array  # () int32
    options: Pages = dataclasses.field(metadata=dict(static=True))
    limit: int = dataclasses.field(metadata=dict(static=True))  # tokens that a row may hold

    @property
    def size(self) -> int:
        """Tokens of a page."""
        return self.options.size

    @property
    def capacity(self) -> int:
        """Pages that rows can take."""
        return self.stack.shape[0]

    @property
    def rows(self) -> int:
        """Rows of tokens."""
        return self.table.shape[0]

    @property
    def most(self) -> int:
        """The most pages of a row."""
        return self.table.shape[1]

    def is_row(self, number: Array) -> Array:
        """Whether a number is one of a row."""
        return (number >= 0) & (number < self.rows)

    @property
    def heads(self) -> tuple[int, int]:
        """(heads of keys and values, their width)."""
        _, _, heads, _, width = self.stores[0].keys.shape
        return heads, width // 2 if self.stores[0].values is None else width

    def pages_of(self, tokens: Array) -> Array:
        """How many pages so many tokens take."""
        return (tokens + self.size - 1) // self.size


def empty_store(
    layers: int, pages: int, heads: int, size: int, width: int, dtype: DTypeLike
) -> PageStore:
    """Pages of zeros: `pages` of them, and a page 0.

    Args:
        layers: layers of the model.
        pages: pages that rows can take.
        heads: heads of keys and values.
        size: tokens of a page.
        width: width of a head.
        dtype: of keys and values.
    """
    shape = (layers, pages + 1, heads, size)
    if width < LANES:
        return PageStore(jnp.zeros((*shape, 2 * width), dtype), None)
    return PageStore(jnp.zeros((*shape, width), dtype), jnp.zeros((*shape, width), dtype))
