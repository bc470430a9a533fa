"""hadamard: H Hᵀ = I with every entry ±1/√n; x H spreads one large number of x over all."""

import numpy as np


def hadamard(n: int) -> np.ndarray:
    """An orthogonal matrix of ±1/√n (n, n) in float32; symmetric where n is a power of two.

    It is doubled (Sylvester, 1867) from a matrix of order 1, or of order q + 1 or 2(q + 1) for a
    prime q (Paley, 1933). So there are orders such as 12, 20, 28, 36, 576, 768, 960, 1,536, 5,120.

    Raises:
        ValueError: this construction knows no matrix of order n, and there is none unless n is 1, 2
            or a multiple of 4.

    Example:
        >>> import numpy as np
        >>> [bool(np.allclose(h @ h.T, np.eye(len(h)), atol=1e-6)) for h in map(hadamard, (8, 36))]
        [True, True]
    """
    halvings = (n & -n).bit_length() - 1  # how often 2 divides n; −1 for 0
    is_power = n > 0 and n == n & -n
    # a power of two is doubled from order 1, which keeps it symmetric
    for doublings in range(halvings if is_power else 0, halvings + 1):
        core = _core(n >> doublings)
        if core is not None:
            for _ in range(doublings):
                core = np.block([[core, core], [core, -core]])
            return (core / np.sqrt(n)).astype(np.float32)
    raise ValueError(f"no Hadamard matrix of order {n} is known here: try a multiple of 4")


def _core(n):
    """The matrix of ±1 (n, n) for n = 1, q + 1 or 2(q + 1); None for other orders."""
    if n == 1:
        return np.ones((1, 1))
    if n % 4:
        return None
    if _is_prime(n - 1):  # then n − 1 is 3 mod 4, and S is skew
        return np.eye(n) + _conference(n - 1)
    q = n // 2 - 1
    if q % 4 == 1 and _is_prime(q):
        off_diagonal, diagonal = np.array([[1, 1], [1, -1]]), np.array([[1, -1], [-1, -1]])
        return np.kron(_conference(q), off_diagonal) + np.kron(np.eye(q + 1), diagonal)
    return None


def _conference(q):
    """The conference matrix S (q + 1, q + 1): zero diagonal, ±1 elsewhere, S Sᵀ = q I."""
    squares = {i * i % q for i in range(1, q)}
    sign = np.array([0] + [1 if i in squares else -1 for i in range(1, q)])
    s = np.zeros((q + 1, q + 1))
    s[0, 1:] = 1
    s[1:, 0] = 1 if q % 4 == 1 else -1
    s[1:, 1:] = sign[(np.arange(q)[:, None] - np.arange(q)[None]) % q]
    return s


def _is_prime(n):
    return n > 1 and all(n % i for i in range(2, int(n**0.5) + 1))
