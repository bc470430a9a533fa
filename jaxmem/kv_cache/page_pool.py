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
from ..core.hadamard import hadamard
from .layer_groups import LayerGroups

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
    """How a pool holds keys and values: in pages of `size` tokens, in floats or in `bits` bits.

    A page holds `size` tokens of one row in all layers. A row of n tokens takes ⌈n / size⌉ pages,
    of which less than one is empty.

    With `bits`, a page is encoded when it is full (`encode_pages` says how, and with which error);
    of each row the unfinished page is kept in floats. A token takes, for each layer and key/value
    head of width h, h · bits/4 bytes of codes, and 4h/size + 4 bytes of ranges.

    Args:
        bits: 8, 4 or 2, or None for floats.
        size: tokens of a page, a multiple of 8.
        rotate: turn queries, keys and values by a Hadamard matrix before they are encoded, which
            spreads large channels (Ashkboos et al., 2024, QuaRot).
        window: the most tokens that a query sees, itself included, besides the first `sinks`; None
            for all that the model's layers see. Pages between the two can be released.
        sinks: the first tokens of a row, which a query sees beside its window (Xiao et al., 2024,
            StreamingLLM, who take 4). Positions stay those in the text.
        by_window: layers with a window have pages of their own, of which those behind the window
            can be released while the other layers keep theirs. A page then holds fewer layers, and
            a row takes more of them. No cache of prefixes takes such pages.

    Raises:
        ValueError: other bits, a size that is no positive multiple of 8, `rotate` with floats, a
            window below 1, or `sinks` without a window.

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
    rotate: bool = False
    window: int | None = None
    sinks: int = 0
    by_window: bool = False

    def __post_init__(self):
        check_fields(self)
        if self.bits not in (None, 2, 4, 8):
            raise ValueError(f"Pages takes 2, 4 or 8 bits, or None for floats, got {self.bits}")
        if self.rotate and self.bits is None:
            raise ValueError("rotate is True with bits None: floats need no rotation")
        if self.size <= 0 or self.size % PAGE_UNIT:
            raise ValueError(
                f"size is {self.size} tokens a page, expected a positive multiple of {PAGE_UNIT}"
            )
        if self.window is not None and self.window < 1:
            raise ValueError(f"window is {self.window} tokens, expected at least 1, or None")
        if self.sinks < 0 or (self.sinks and self.window is None):
            raise ValueError(
                f"sinks is {self.sinks} with window {self.window}, expected tokens beside a window"
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
            most: the most pages of a row, for each group of layers (`by_window`).
            dtype: of keys and values that are not encoded.

        A model with latents has them in the pages, in floats. The states of recurrent layers have
        one size, whatever the text: each row has its own, beside the pages of the layers with
        attention.

        Raises:
            ValueError: a number below 1; with `rotate`, a head width without a Hadamard matrix.
            NotImplementedError: `bits` for latents, or for a model without attention.
        """
        counts = {"pages": pages, "rows": rows, "most": most}
        if wrong := {name: n for name, n in counts.items() if n < 1}:
            raise ValueError(f"a pool has {wrong}, expected at least 1 of each")
        cache = jax.eval_shape(lambda: config.cache(rows + 1, self.size, dtype))
        nothing = jax.ShapeDtypeStruct((0, 1, 1, 1, 0), dtype)  # without attention
        keys, values = (cache.pop(name, nothing) for name in "kv")
        layers, _, heads, _, width = keys.shape
        is_latent = bool(getattr(config, "latent", None))
        if self.bits and (is_latent or not layers):
            kept = "latents, which are kept in floats" if is_latent else "no keys and values"
            raise NotImplementedError(f"{self} for a model with {kept}; use jm.Pages()")
        width += values.shape[-1] if is_latent else 0
        try:
            _ = self.rotate and hadamard(width)
        except ValueError as error:
            raise ValueError(f"{self} cannot turn heads of width {width}: {error}") from None
        groups = LayerGroups.of(config, self.window, by_window=self.by_window)
        store = empty_store(self, (groups.size, pages + 1, heads), width, dtype, is_latent)
        tail = PageStore(None, None)
        if self.bits:  # the unfinished pages, and one for rows that are not there
            floats = dataclasses.replace(self, bits=None, rotate=False)
            tail = empty_store(floats, (layers, rows + 1, heads), width, dtype)
        limit = most * self.size
        has_table = getattr(config, "positions", "learned") == "learned"  # or a GPT-2
        limit = min(limit, config.context) if has_table else limit
        zeros = lambda *shape: jnp.zeros(shape, jnp.int32)
        return PagePool(
            stores=(store,),
            tails=tuple(x for x in (tail.keys, tail.values) if x is not None),
            states={name: jnp.zeros(x.shape, x.dtype) for name, x in cache.items()},
            table=zeros(rows, most * len(groups)),
            length=zeros(rows),
            room=zeros(rows),
            refs=zeros(pages + 1),
            stack=jnp.arange(pages, 0, -1, dtype=jnp.int32),
            top=jnp.int32(pages),
            options=self,
            limit=limit,
            groups=groups,
            is_latent=is_latent,
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PageStore:
    """The pages of one extent; its page 0 takes what is written for rows that are not there.

    Heads narrower than the lanes of a TPU have keys and values side by side in `keys`: a pool that
    is 64 wide would be copied as a whole, to another layout, by XLA for TPU. A latent is key and
    value: in `keys`, after the rotary key of its token.
    """

    # L layers of a group
    keys: Array  # (L, N, K, P, h), or (L, N, K, P, 2h) with the values of a token after its key
    values: Array | None  # (L, N, K, P, h), or None
    # Of codes: P · bits / 8 in place of P, and in f16 the step and low of each channel of keys, and
    # of each token's value: (L, N, K, 2h + 2P). Arrays of 64 lanes would be copied as above.
    ranges: Array | None = None

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
    tails: tuple[Array, ...]  # of codes: (L, rows + 1, K, P, h or 2h), the unfinished pages
    # of recurrent layers, (S, rows + 1, ...) each: the last is of what is no row
    states: dict[str, Array]
    table: Array  # (rows, most) int32: pages in order, of one group after the other; 0 for none
    length: Array  # (rows,) int32
    room: Array  # (rows,) int32
    refs: Array  # (1 + capacity,) int32
    stack: Array  # (capacity,) int32
    top: Array  # () int32
    options: Pages = dataclasses.field(metadata=dict(static=True))
    limit: int = dataclasses.field(metadata=dict(static=True))  # tokens that a row may hold
    groups: LayerGroups = dataclasses.field(metadata=dict(static=True))  # of layers in a page
    is_latent: bool = dataclasses.field(metadata=dict(static=True), default=False)

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
    def beside(self) -> bool:
        """Whether keys and values are side by side in one array."""
        return self.stores[0].values is None and not self.is_latent

    @property
    def heads(self) -> tuple[int, int]:
        """(heads of keys and values, their width)."""
        _, _, heads, _, width = self.stores[0].keys.shape
        return heads, width // 2 if self.beside else width

    def pages_of(self, tokens: Array) -> Array:
        """How many pages so many tokens take."""
        return (tokens + self.size - 1) // self.size * len(self.groups)


def empty_store(
    options: Pages,
    sizes: tuple[int, int, int],
    width: int,
    dtype: DTypeLike,
    is_latent: bool = False,
) -> PageStore:
    """Pages of zeros for `sizes` (L, N, K) and heads of width h; page 0 is one of the N."""
    zeros = lambda *shape: jnp.zeros((*sizes, *shape), dtype)
    tokens, ranges = options.size, None
    if options.bits:
        zeros = lambda *shape: jnp.zeros((*sizes, *shape), jnp.uint8)
        tokens = tokens * options.bits // 8
        ranges = jnp.zeros((*sizes, 2 * width + 2 * options.size), jnp.float16)
    if is_latent:
        return PageStore(zeros(tokens, width), None)
    if width < LANES:
        return PageStore(zeros(tokens, 2 * width), None, ranges)
    return PageStore(zeros(tokens, width), zeros(tokens, width), ranges)
