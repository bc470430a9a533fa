"""Stores, documents and rows are data sources of grain, and grain's data sets are read as such."""

import numpy as np
import pytest

import jaxmem as jm

grain = pytest.importorskip("grain")


def rows():
    return jm.data.PackedRows([[i, i + 1, i + 2] for i in range(20)], 6)


def test_grain_shuffles_and_resumes_rows():
    batches = grain.MapDataset.source(rows()).shuffle(seed=1).batch(2).to_iter_dataset()
    first, again = iter(batches), iter(batches)
    next(first)
    again.set_state(first.get_state())
    np.testing.assert_equal(next(again), next(first))


def test_a_store_and_documents_are_random_access_sources(tmp_path):
    jm.data.write(tmp_path / "t", np.arange(9) * 2)
    documents = jm.data.Documents(np.arange(5), [2, 3])
    for source, third in ((jm.data.Tokens(tmp_path / "t"), 2), (documents, None)):
        assert isinstance(source, grain.sources.RandomAccessDataSource)
        found = grain.MapDataset.source(source)[1]
        np.testing.assert_equal(found, source[1] if third is None else third)


def test_data_sets_of_grain_are_packed_and_batched():
    texts = grain.MapDataset.source([[1, 2, 3], [4, 5]]).map(np.asarray)
    assert jm.data.PackedRows(texts, 5)[0]["ids"].tolist() == [1, 2, 3, 4, 5]
    ids = grain.MapDataset.source(rows()).map(lambda row: {"ids": row["ids"]})
    assert next(jm.data.Batches(ids, 2))["ids"].shape == (2, 6)
