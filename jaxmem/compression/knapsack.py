"""The choice for each weight whose sizes add up to at most a limit and whose losses are least."""

from collections.abc import Sequence

import numpy as np

from .pareto_fronts import least_by_fronts

RELATIVE_GAP = 1e-6  # the plan's loss is at most this share above the least possible


def least_loss(
    sizes: Sequence[np.ndarray],
    losses: Sequence[np.ndarray],
    limit: int,
    prices: Sequence[np.ndarray] | None = None,
    price_limit: float = np.inf,
) -> list[int] | None:
    """The choice in each row, so that the sizes add up to at most `limit` and losses are least.

    A multiple-choice knapsack. With one limit and few rows, dynamic programming solves it exactly;
    else HiGHS does: to import scipy alone takes longer than to fit a small model.

    Args:
        sizes: bytes of the choices of each row, (choices,) each.
        losses: losses of the choices, in any unit.
        limit: the most bytes.
        prices: second prices of the choices, in any unit.
        price_limit: the most that second prices add up to, within 1e-6 of it.

    Returns:
        the numbers of the choices; None if no choices keep both limits.

    Raises:
        ImportError: HiGHS is needed, and scipy is missing.
    """
    if not sizes:
        return []
    if prices is None and (choices := least_by_fronts(sizes, losses, limit)) is not None:
        return choices
    try:
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_array
    except ModuleNotFoundError as e:
        raise ImportError('budget wants scipy: pip install "jaxmem[demo]"') from e
    size, loss = np.concatenate(sizes), np.concatenate(losses)
    row = np.repeat(np.arange(len(sizes)), [len(s) for s in sizes])
    which = csr_array((np.ones(len(size)), (row, np.arange(len(size)))))
    one_each = LinearConstraint(which, 1, 1)
    unit = max(limit, 1) / 1e3  # better conditioned; HiGHS may then go over by a billionth
    priced = []
    if prices is not None:
        price = np.concatenate(prices)[None] * (1e3 / price_limit)
        priced = [LinearConstraint(price, -np.inf, 1e3)]
    solve = lambda whole, scale, limit: milp(
        loss / max(scale, 1e-300),
        integrality=np.full(len(loss), whole),
        bounds=Bounds(0, 1),
        constraints=[
            one_each,
            LinearConstraint(size[None] / unit, -np.inf, limit / unit),
            *priced,
        ],
        options={"mip_rel_gap": RELATIVE_GAP},
    )
    # The relaxed problem gives a lower bound. Losses are scaled by it: HiGHS's gap is absolute.
    bound = solve(0, loss.max(), limit).fun
    if bound is None:
        return None
    bound *= loss.max()
    scale, reached = max(bound, loss.max() * 1e-9), limit
    ends = np.flatnonzero(np.diff(row)) + 1
    while True:
        solution = solve(1, scale, reached).x
        if solution is None:
            return None
        choices = [int(part.argmax()) for part in np.split(solution, ends)]
        over = sum(s[i] for s, i in zip(sizes, choices)) - limit
        if over <= 0:
            return choices
        reached -= over
