"""Packing loses no token and mixes no texts; an order that resumes is the uninterrupted one."""

import itertools
import json

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

import jaxmem as jm
from jaxmem.data.documents import from_arrays


def texts(count=40, longest=30):
    random = np.random.default_rng(0)
    return [random.integers(1, 99, random.integers(2, longest)).tolist() for _ in range(count)]


def unpacked(rows):
    """The texts of rows, in any order."""
    found = []
    for row in rows:
        for s in range(1, row["segments"].max() + 1):
            found.append(row["ids"][row["segments"] == s].tolist())
    return sorted(found)


@hypothesis.given(strategies.lists(strategies.integers(1, 20), min_size=1, max_size=60))
@hypothesis.settings(max_examples=50, deadline=None)
def test_each_sequence_is_in_one_row_that_has_room(lengths):
    packing = jm.data.pack(lengths, 20)
    rows = [packing.row(r) for r in range(len(packing))]
    assert sorted(s for row in rows for s, _, _ in row) == list(range(len(lengths)))
    assert all(start == 0 and size == lengths[s] for row in rows for s, start, size in row)
    assert max(sum(size for _, _, size in row) for row in rows) <= 20
    assert len(rows) <= 2 * -(-sum(lengths) // 20)  # no two rows are half empty
    assert packing.waste == pytest.approx(1 - sum(lengths) / (20 * len(rows)))


def test_best_fit_needs_fewer_rows_than_the_order_they_come_in():
    lengths = np.random.default_rng(0).integers(10, 200, 400)
    packing = jm.data.pack(lengths, 512)
    assert packing.waste < 0.01
    rows, room = 0, 0
    for length in lengths:
        rows, room = (rows, room - length) if room >= length else (rows + 1, 512 - length)
    assert len(packing) < rows


def test_a_long_sequence_is_split_or_refused():
    packing = jm.data.pack([10, 3], 4, longer="split")
    pieces = sorted(piece for r in range(len(packing)) for piece in packing.row(r))
    assert pieces == [(0, 0, 4), (0, 4, 4), (0, 8, 2), (1, 0, 3)]
    with pytest.raises(ValueError, match="sequence 0 has 10 tokens, and a row 4"):
        jm.data.pack([10, 3], 4)


@pytest.mark.parametrize(
    ("lengths", "width", "message"),
    [([], 4, "no sequences"), ([2, 0], 4, "sequence 1 has 0"), ([1], 0, "width 0")],
)
def test_what_cannot_be_packed_is_refused(lengths, width, message):
    with pytest.raises(ValueError, match=message):
        jm.data.pack(lengths, width)


def test_rows_hold_every_text_whole_with_its_own_positions():
    rows = jm.data.PackedRows(texts(), 32, seed=3)
    assert unpacked(rows) == sorted(texts())
    for row in rows:
        first = np.diff(row["segments"], prepend=0) != 0
        assert not row["mask"][first].any() and not row["mask"][row["segments"] == 0].any()
        np.testing.assert_array_equal(row["positions"][first & (row["segments"] > 0)], 0)
        inside = (row["segments"] > 0) & ~first
        assert row["mask"][inside].all()
        assert (np.diff(row["positions"])[inside[1:]] == 1).all()


def test_a_mask_goes_with_its_tokens_and_pieces_without_a_target_are_left_out():
    documents = from_arrays([range(8), [8, 9]], [[0] * 5 + [1] * 3, [0, 1]])
    rows = jm.data.PackedRows(documents, 4, longer="split")
    assert unpacked(rows) == [[4, 5, 6, 7], [8, 9]]
    masks = {tuple(row["ids"].tolist()): row["mask"].astype(int).tolist() for row in rows}
    assert masks == {(4, 5, 6, 7): [0, 1, 1, 1], (8, 9, 0, 0): [0, 1, 0, 0]}


def test_a_mask_that_hides_everything_is_refused():
    with pytest.raises(ValueError, match="nothing is learnt of document 1"):
        jm.data.PackedRows(from_arrays([[1, 2], [3, 4]], [[1, 1], [1, 0]]), 4)


def test_documents_come_back_from_a_folder_and_pack_the_same(tmp_path):
    masks = [[i % 3 > 0 for i in range(len(x))] for x in texts()]
    documents = from_arrays(texts(), [[*m[:-1], True] for m in masks])
    documents.save(tmp_path / "corpus")
    stored = jm.data.Documents.open(tmp_path / "corpus")
    for a, b in zip(jm.data.PackedRows(documents, 64), jm.data.PackedRows(stored, 64)):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])
    (tmp_path / "corpus" / "lengths.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(ValueError, match=r"lengths\.npy: it is damaged"):
        jm.data.Documents.open(tmp_path / "corpus")


def test_lengths_that_do_not_sum_to_the_tokens_are_refused():
    with pytest.raises(ValueError, match="5 tokens, and ids 4"):
        jm.data.Documents(np.arange(4), [2, 3])
    with pytest.raises(ValueError, match="a document without tokens"):
        jm.data.Documents(np.arange(4), [4, 0])


def test_an_epoch_has_each_row_at_most_once_and_the_next_another_order():
    stream = jm.data.Batches(jm.data.PackedRows([[i, i] for i in range(20)], 2), 4, seed=0)
    epochs = [[next(stream)["ids"][:, 0].tolist() for _ in range(5)] for _ in range(2)]
    assert stream.steps_per_epoch == 5
    assert all(sorted(itertools.chain(*epoch)) == list(range(20)) for epoch in epochs)
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("stop", [0, 3, 7, 16])
def test_a_resumed_order_is_the_uninterrupted_one(stop):
    rows = jm.data.PackedRows(texts(), 32)
    whole, first = jm.data.Batches(rows, 3, seed=5), jm.data.Batches(rows, 3, seed=5)
    expected = [next(whole) for _ in range(20)]
    for _ in range(stop):
        next(first)
    again = jm.data.Batches(rows, 3, seed=5)
    again.restore(json.loads(json.dumps(first.state())))
    for batch in expected[stop:]:
        np.testing.assert_equal(next(again), batch)


def test_processes_share_a_batch():
    rows = jm.data.PackedRows(texts(), 32)
    whole = next(jm.data.Batches(rows, 4, seed=1))
    parts = [next(jm.data.Batches(rows, 4, seed=1, shard=(i, 2))) for i in range(2)]
    np.testing.assert_array_equal(whole["ids"], np.concatenate([p["ids"] for p in parts]))


def test_a_state_of_another_run_and_too_few_rows_are_refused():
    rows = jm.data.PackedRows(texts(), 32)
    state = jm.data.Batches(rows, 4, seed=1).state()
    with pytest.raises(ValueError, match="seed 1, and this run 2"):
        jm.data.Batches(rows, 4, seed=2).restore(state)
    with pytest.raises(ValueError, match="a batch takes 4000"):
        jm.data.Batches(rows, 4000)
    with pytest.raises(ValueError, match="expected a multiple"):
        jm.data.Batches(rows, 4, shard=(0, 3))
