"""Ids of kept logits in Elias–Fano codes, and log-probabilities in a byte, log p = −24 · (c/255)².

The k ids of a token ascend. Of each id the low l bits are stored as they are, and the rest as a bit
set in a row of k + V / 2^l, id i at the place rest + i: 2 + log2(V / k) bits an id (Elias, 1974;
Fano, 1971). All tokens take as many bytes, so that each is found without an index.
"""

import numpy as np

LEAST_LOG, LEAST_LOG_REST = -24.0, -32.0  # what is less is stored as these


def low_bits(k: int, vocabulary: int) -> int:
    """How many bits of an id are stored as they are.

    Example:
        >>> low_bits(64, 128_256)
        10
    """
    return max(0, (vocabulary // k).bit_length() - 1)


def id_nbytes(k: int, vocabulary: int) -> int:
    """Bytes of the k ids of a token.

    Example:
        >>> id_nbytes(64, 128_256)
        104
    """
    low = low_bits(k, vocabulary)
    return -(-(k * low + k + ((vocabulary - 1) >> low) + 1) // 8)


def encode_ids(ids: np.ndarray, vocabulary: int) -> np.ndarray:
    """The codes (n, id_nbytes) u8 of ids (n, k), which ascend in each row and do not repeat.

    Example:
        >>> codes = encode_ids(np.array([[3, 70, 71]]), 100)
        >>> codes.shape, decode_ids(codes, 3, 100).tolist()
        ((1, 3), [[3, 70, 71]])
    """
    n, k = ids.shape
    low = low_bits(k, vocabulary)
    below = (ids[:, :, None] >> np.arange(low)) & 1
    above = np.zeros((n, k + ((vocabulary - 1) >> low) + 1), np.uint8)
    np.put_along_axis(above, (ids >> low) + np.arange(k), 1, axis=1)
    return np.packbits(np.hstack([below.reshape(n, k * low).astype(np.uint8), above]), axis=1)


def decode_ids(codes: np.ndarray, k: int, vocabulary: int) -> np.ndarray:
    """The ids (n, k) i32 of codes (n, id_nbytes) u8.

    Raises:
        ValueError: a row is not the code of k ids of this vocabulary.
    """
    low = low_bits(k, vocabulary)
    size = k * low + k + ((vocabulary - 1) >> low) + 1
    bits = np.unpackbits(codes, axis=1, count=size)
    below = bits[:, : k * low].reshape(len(codes), k, low) @ (1 << np.arange(low)).astype(np.int32)
    above = bits[:, k * low :]
    if (above.sum(1, dtype=np.int64) != k).any():
        raise ValueError(f"it is damaged: a token has not {k} ids")
    above = np.nonzero(above)[1].reshape(-1, k) - np.arange(k)
    ids = ((above << low) + below).astype(np.int32)
    if ids.size and (ids.max() >= vocabulary or (np.diff(ids) < 1).any()):
        raise ValueError(f"it is damaged: ids do not ascend below {vocabulary}")
    return ids


def encode_logs(logs: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Log-probabilities in u8, rounded at random so that the mean of exp(decoded) is exp(logs).

    A step is .1 % of a probability near 1, 1 % of .9 and 12 % of e^-10.

    Example:
        >>> random = np.random.default_rng(0)
        >>> logs = np.full(100_000, np.log(0.3))
        >>> round(float(np.exp(decode_logs(encode_logs(logs, random))).mean()), 3)
        0.3
    """
    code = np.clip(255 * np.sqrt(np.maximum(logs, LEAST_LOG) / LEAST_LOG), 0, 255)
    near = np.minimum(np.floor(code), 254).astype(np.uint8)  # the more probable of the two codes
    high, low = np.exp(decode_logs(near)), np.exp(decode_logs(near + np.uint8(1)))
    chance = (high - np.exp(np.maximum(logs, LEAST_LOG))) / (high - low)
    return near + (random.random(logs.shape) < chance).astype(np.uint8)


def decode_logs(codes: np.ndarray) -> np.ndarray:
    """The log-probabilities, in f32, of codes u8."""
    return np.float32(LEAST_LOG) * np.square(codes.astype(np.float32) / 255)


def encode_rest(rest: np.ndarray) -> np.ndarray:
    """Numbers of 0 to 1 in u16: log x = −32 · (c/65535)², to .1 % of all above e^-20.

    Example:
        >>> decode_rest(encode_rest(np.array([1.0, 0.25, 0.0]))).round(4).tolist()
        [1.0, 0.25, 0.0]
    """
    logs = np.log(np.maximum(rest, np.exp(LEAST_LOG_REST)))
    return np.rint(65535 * np.sqrt(np.clip(logs / LEAST_LOG_REST, 0, 1))).astype("<u2")


def decode_rest(codes: np.ndarray) -> np.ndarray:
    """The numbers, in f32, of codes u16; the last code is 0."""
    values = np.exp(np.float32(LEAST_LOG_REST) * np.square(codes.astype(np.float32) / 65535))
    return np.where(codes == 65535, np.float32(0), values)
