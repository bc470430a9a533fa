"""The inputs that go are those of least loss, and the rest is refitted exactly."""

import numpy as np
from cheap_jit import jit

from jaxmem.structured_pruning.input_removal import remove as plain_remove

draw = lambda *shape: np.random.default_rng(sum(shape)).standard_normal(shape, np.float32)
remove = jit(plain_remove, static_argnums=(2, 3, 4))


def test_the_greedy_choice_is_the_least_loss_and_the_fit_is_exact():
    w, x = draw(6, 5), draw(200, 6) @ draw(6, 6)
    gram = x.T @ x / 200
    stay, left = remove(w, gram, (0,) * 6, 2, 0.0)
    whole = np.asarray(x @ w, "f8")

    def refitted(rows):
        inputs = np.asarray(x[:, rows], "f8")
        best = np.linalg.lstsq(inputs, whole, rcond=None)[0]
        return ((inputs @ best - whole) ** 2).sum(), best

    rows = list(range(6))
    for _ in range(2):  # one at a time
        rows = min(([i for i in rows if i != gone] for gone in rows), key=lambda r: refitted(r)[0])
    assert stay.tolist() == rows
    np.testing.assert_allclose(left, refitted(rows)[1], rtol=2e-3, atol=2e-3)


def test_groups_go_whole_and_every_set_loses_as_many():
    w, x = draw(12, 5), draw(300, 12) @ draw(12, 12)
    stay, left = remove(w, x.T @ x / 300, (0, 0, 0, 1, 1, 1), 1)
    assert left.shape == (8, 5)
    assert sorted((stay // 3).tolist()) == [0, 0, 1, 1]
