"""hadamard: H Hᵀ = I with every entry ±1/√n, so that one large number is spread over all."""

import numpy as np


def hadamard(n: int) -> np.ndarray:
    """An orthogonal matrix of ±1/√n (n, n) in float32; symmetric where n is a power of two.

    Doubled (Sylvester, 1867) from 1, or from q + 1 or 2(q + 1) for a prime q (Paley, 1933): orders
    such as 12, 20, 28, 36, 576, 768, 960, 1,536 or 5,120.

    Raises:
        ValueError: no matrix of that order is known here; n = 2 and multiples of 4 may have one.

    Example:
        >>> import numpy as np
        >>> [bool(np.allclose(h @ h.T, np.eye(len(h)), atol=1e-6)) for h in map(hadamard, (8, 36))]
        [True, True]
    """
    most = (n & -n).bit_length() - 1  # how often 2 divides n; −1 for 0
    power = n > 0 and n == n & -n
    for twos in range(most if power else 0, most + 1):  # a power of two from 1: it is symmetric
        core = _core(n >> twos)
        if core is not None:
            for _ in range(twos):
                core = np.block([[core, core], [core, -core]])
            return (core / np.sqrt(n)).astype(np.float32)
    raise ValueError(f"no Hadamard matrix of order {n} is known here: try a multiple of 4")


def _core(n):
    """The matrix of ±1 of an order 1, q + 1 or 2(q + 1); None for others."""
    if n == 1:
        return np.ones((1, 1))
    if n % 4:
        return None
    if _is_prime(n - 1):  # then n − 1 is 3 mod 4, and S is skew
        return np.eye(n) + _conference(n - 1)
    q = n // 2 - 1
    if q % 4 == 1 and _is_prime(q):
        one, other = np.array([[1, 1], [1, -1]]), np.array([[1, -1], [-1, -1]])
        return np.kron(_conference(q), one) + np.kron(np.eye(q + 1), other)
    return None


def _conference(q):
    """S (q + 1, q + 1) with a zero diagonal, ±1 elsewhere and S Sᵀ = q I."""
    squares = {i * i % q for i in range(1, q)}
    sign = np.array([0] + [1 if i in squares else -1 for i in range(1, q)])
    s = np.zeros((q + 1, q + 1))
    s[0, 1:] = 1
    s[1:, 0] = 1 if q % 4 == 1 else -1
    s[1:, 1:] = sign[(np.arange(q)[:, None] - np.arange(q)[None]) % q]
    return s


def _is_prime(n):
    return n > 1 and all(n % i for i in range(2, int(n**0.5) + 1))
