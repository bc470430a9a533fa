"""LZW: a code for the longest known string, which plus the next symbol becomes known.

The dictionary is built again by the reader, so it is never stored (Welch, 1984). Here it is the
textbook's method beside `write`, which makes smaller files and reads them at any place.
"""

from collections.abc import Iterable
from numbers import Integral

import numpy as np

from ..core.arguments import AT_LEAST_0, POSITIVE, Kind, takes

_SYMBOLS = Kind(
    "an iterable of integers",
    lambda x: (
        hasattr(x, "dtype")
        or (
            isinstance(x, Iterable)
            and not isinstance(x, str | dict)
            and not (isinstance(x, list | tuple) and not all(isinstance(s, Integral) for s in x))
        )
    ),
)


@takes(symbols=_SYMBOLS, alphabet=POSITIVE, most=POSITIVE)
def lzw_encode(symbols: Iterable[int], alphabet: int, *, most: int = 1 << 16) -> np.ndarray:
    """The codes (n,) i32 of symbols, such as bytes or token ids.

    Args:
        symbols: integers from 0 to `alphabet` - 1.
        alphabet: how many symbols there are: 256 for bytes. Their codes are the symbols.
        most: how many codes there are, symbols included; then no new one is made.

    Raises:
        ValueError: a symbol is not in the alphabet, or `most` is less than `alphabet`.

    Example:
        >>> import jaxmem as jm
        >>> codes = jm.data.lzw_encode(b"TOBEORNOTTOBEORTOBEORNOT", 256)
        >>> codes.tolist()
        [84, 79, 66, 69, 79, 82, 78, 79, 84, 256, 258, 260, 265, 259, 261, 263]
        >>> bytes(jm.data.lzw_decode(codes, 256).tolist())
        b'TOBEORNOTTOBEORTOBEORNOT'

        A short text without repeats grows, as each code takes 9 bits: 39 bytes become 43.875.

        >>> short = b"Sphinx of black quartz, judge my vow 42"
        >>> len(short), jm.data.lzw_nbytes(len(jm.data.lzw_encode(short, 256, most=512)), 512)
        (39, 43.875)
        >>> long = short * 100
        >>> len(long), jm.data.lzw_nbytes(len(jm.data.lzw_encode(long, 256, most=4096)), 4096)
        (3900, 799.5)
    """
    if most < alphabet:
        raise ValueError(f"most is {most}, expected at least the {alphabet} symbols")
    known: dict[tuple[int, int], int] = {}
    codes, prefix = [], -1
    for symbol in symbols:
        if not 0 <= symbol < alphabet:
            raise ValueError(f"a symbol is {symbol}, expected 0 to {alphabet - 1}")
        if prefix < 0:
            prefix = int(symbol)
        elif (code := known.get((prefix, int(symbol)))) is not None:
            prefix = code
        else:
            if alphabet + len(known) < most:
                known[prefix, int(symbol)] = alphabet + len(known)
            codes.append(prefix)
            prefix = int(symbol)
    return np.array(codes if prefix < 0 else [*codes, prefix], np.int32)


@takes(codes=_SYMBOLS, alphabet=POSITIVE, most=POSITIVE)
def lzw_decode(
    codes: Iterable[int], alphabet: int, *, most: int = 1 << 16, longest: int = 1 << 28
) -> np.ndarray:
    """The symbols (n,) i32 of codes that `lzw_encode` wrote with the same `alphabet` and `most`.

    Raises:
        ValueError: a code is not known where it stands, or there are more symbols than `longest`.
    """
    strings: list[tuple[int, ...]] = [(symbol,) for symbol in range(alphabet)]
    out: list[int] = []
    last: tuple[int, ...] = ()
    for code in codes:
        if not 0 <= code < len(strings) + (bool(last) and len(strings) < most):
            raise ValueError(f"code {code} is not among the {len(strings)} that are known here")
        # A code that is used at once, before it is known, is the last string and its first symbol.
        string = strings[code] if code < len(strings) else (*last, last[0])
        if last and len(strings) < most:
            strings.append((*last, string[0]))
        if len(out) + len(string) > longest:
            raise ValueError(f"the codes are of more than {longest} symbols")
        out.extend(string)
        last = string
    return np.array(out, np.int32)


@takes(codes=AT_LEAST_0, most=POSITIVE)
def lzw_nbytes(codes: int, most: int) -> float:
    """The bytes of a number of codes, each in as many bits as `most` codes take.

    Example:
        >>> import jaxmem as jm
        >>> jm.data.lzw_nbytes(36, 512)
        40.5
    """
    return codes * max((most - 1).bit_length(), 1) / 8
