"""Requests fill rows of trees: each has its steps, and a shared beginning is there once."""

import numpy as np
import pytest

from jaxmem.models.text_trees import arrays_of, sums_of, trees_of


def drawn(seed, count=40):
    """Requests of few different tokens, so that many begin alike."""
    rng = np.random.default_rng(seed)
    text = lambda n: tuple(rng.integers(1, 3, rng.integers(1, n)).tolist())
    return [(text(6), text(5)) for _ in range(count)]


def text_to(tree, place):
    """The tokens from the root to a place, by depths alone."""
    found, depth = [], tree.depths[place] + 1
    for i in range(place, -1, -1):
        if tree.depths[i] < depth:
            depth = tree.depths[i]
            found.append(tree.ids[i])
    return tuple(reversed(found))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("room", [8, 16, 64])
def test_each_request_asks_for_its_tokens_after_what_it_reads(seed, room):
    asked = drawn(seed)
    trees = trees_of(asked, room=room, most=16)
    found = {request: tree for tree in trees for request in tree.asked}
    assert found.keys() == set(asked)
    assert all(tree.size <= tree.room <= max(room, 16) for tree in trees)
    for (context, continuation), tree in found.items():
        steps = [tree.steps[n] for n in tree.asked[context, continuation]]
        text = context + continuation
        wanted = [(text[:i], text[i]) for i in range(len(context), len(text))]
        assert [(text_to(tree, place), token) for place, token in steps] == wanted


def test_a_tree_of_all_texts_has_each_beginning_once():
    asked = drawn(0)
    (tree,) = trees_of(asked, room=10_000, most=16)
    texts = {(c + a)[:n] for c, a in asked for n in range(1, len(c + a))}
    assert len(texts) <= len(tree.ids) < sum(len(c + a) - 1 for c, a in set(asked)) / 2


@pytest.mark.parametrize("seed", range(3))
def test_a_token_ends_before_the_next_one_that_does_not_go_on_from_it(seed):
    (tree,) = trees_of(drawn(seed), room=10_000, most=16)
    ends = tree.ends()
    for i, end in enumerate(ends):
        assert all(depth > tree.depths[i] for depth in tree.depths[i + 1 : end])
        assert end == len(ends) or tree.depths[end] <= tree.depths[i]


def test_sums_are_of_the_steps_of_a_request():
    trees = trees_of([((1, 2), (3, 4)), ((1, 2), (5,))], room=8, most=8)
    _, _, ends, after, targets = arrays_of(trees, 2, 8)
    assert targets[0, :4].tolist() == [3, 4, 5, -1] and after[0, :3].tolist() == [1, 2, 1]
    assert ends[1].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]  # of a row without texts
    logprobs, greedy = np.array([[-1.0, -2.0, -4.0]]), np.array([[True, True, False]])
    found = {request: rest for request, *rest in sums_of(trees, logprobs, greedy)}
    assert found == {((1, 2), (3, 4)): [-3.0, True], ((1, 2), (5,)): [-4.0, False]}
