"""Prefixes are found by their tokens, move down through the tiers, and never come back wrong."""

import errno
import random

import numpy as np
import pytest

import jaxmem as jm
from jaxmem.kv_cache import prefix_index
from jaxmem.kv_cache.eviction_policy import Aged, Auto, Lru
from jaxmem.kv_cache.prefix_index import PrefixIndex


def take(page):
    """The arrays of a page: they say which one it is."""
    return {"keys": np.full((2, 8), page, np.float32)}


def reading(cache, prompt, first, **options):
    """Matches a prompt, promotes what lower tiers hold, and inserts the rest; (hit, pages).

    Pages of the pool are numbered on from `first`.
    """
    hit = cache.match(prompt)
    pages = [*hit.ids, *range(first, first + len(prompt) // cache.size - len(hit.ids))]
    cache.insert(prompt, pages, take=take, **options)
    return hit, pages


def prompt(*pages):
    """A token sequence of pages of 4 equal tokens, and one token more."""
    return np.append(np.repeat(pages, 4), 99)


def test_whole_chunks_of_a_prefix_are_found_and_one_token_stays_unread():
    cache = jm.Prefixes(20, size=4, chunk=8)
    assert cache.insert(prompt(1, 2, 3, 4, 5), [10, 11, 12, 13, 14]).held == (10, 11, 12, 13)
    assert cache.match(prompt(1, 2, 3, 4, 5)).ids == (10, 11, 12, 13)
    assert cache.match(prompt(1, 2, 3, 4)[:-1]).ids == (10, 11)  # 16 tokens, 15 of which may hit
    assert cache.match(prompt(1, 2, 3, 9)).tokens == 8
    assert cache.match(prompt(2, 2)).tier is None and cache.match([]).tokens == 0
    stats = cache.stats()
    assert stats.hits["device"] == 32 and stats.asked == 21 + 16 + 17 + 9


@pytest.mark.parametrize("policy", ["lru", "aged", "auto"])
def test_tails_go_first_and_pinned_pages_stay(policy):
    cache = jm.Prefixes(6, size=4, policy=policy)
    cache.insert(prompt(1, 2, 3), [11, 12, 13])
    cache.insert(prompt(1, 4, 5), [1, 14, 15])
    cache.match(prompt(1, 2, 3))
    cache.pin([14])
    assert cache.evict(2) == [15, 13]  # 14 is pinned
    assert cache.evict(9) == [12]
    cache.unpin([14])
    assert cache.evict(9) == [14, 11]


@pytest.mark.parametrize(
    "tiers", [{"host": 10_000}, {"disk": 100_000}, {"host": 130, "disk": 9**6}]
)
def test_pages_come_back_from_lower_tiers_as_they_were(tmp_path, tiers):
    path = tmp_path / "pages" if "disk" in tiers else None
    cache = jm.Prefixes(4, size=4, path=path, of=1, **tiers)
    reading(cache, prompt(1, 2, 3), 11, seconds=300.0)
    reading(cache, prompt(4, 5, 6, 7), 21)
    hit = cache.match(prompt(1, 2, 3))
    assert [blob["keys"][0, 0] for blob in hit.blobs] == [11, 12, 13] and hit.ids == ()
    assert hit.tier == ("disk" if "disk" in tiers else "host")
    assert 250 < cache.stats().seconds_saved <= 300
    hit, _ = reading(cache, prompt(1, 2, 3, 8), 31)
    assert hit.tokens == 12 and cache.match(prompt(1, 2, 3)).ids == (31, 32, 33)


def on_disk(path, **options):
    """A cache whose pages of (1, 2, 3) are in files of a folder."""
    cache = jm.Prefixes(9, disk="1MB", path=path, size=4, **{"of": 1} | options)
    reading(cache, prompt(1, 2, 3), 11)
    cache.flush(take=take)
    return cache


def test_files_are_found_again_by_the_same_model_alone(tmp_path):
    weights = {"w": np.ones(3)}
    on_disk(tmp_path, of=weights)
    again = lambda **options: jm.Prefixes(9, disk="1MB", path=tmp_path, size=4, **options)
    assert len(again(of=weights).match(prompt(1, 2, 3)).blobs) == 3
    for other in ({"of": {"w": np.zeros(3)}}, {"of": weights, "salt": "b"}):
        assert again(**other).match(prompt(1, 2, 3)).tokens == 0


@pytest.mark.parametrize("damage", ["altered", "cut", "gone", "another's"])
def test_a_bad_file_is_a_miss_and_is_removed(tmp_path, damage):
    cache = on_disk(tmp_path)
    cache.evict(9, take=take)
    first, second, third = (
        p for p in sorted(tmp_path.rglob("*.jm"), key=lambda p: p.stat().st_mtime_ns)
    )
    data = bytearray(second.read_bytes())
    data[-3] ^= 1
    if damage == "another's":
        data = third.read_bytes()
    second.write_bytes(data[:-9] if damage == "cut" else data)
    if damage == "gone":
        second.unlink()
    assert len(cache.match(prompt(1, 2, 3)).blobs) == 1
    assert cache.stats().bad_files == 1 and not second.exists() and first.exists()


def test_the_disk_is_bounded_in_bytes_and_a_full_one_is_counted(tmp_path, monkeypatch):
    cache = jm.Prefixes(3, disk=12_000, path=tmp_path, size=4, of=1)
    for i in range(10):
        reading(cache, prompt(3 * i, 3 * i + 1, 3 * i + 2), 100 + 3 * i)
    files = list(tmp_path.rglob("*.jm"))
    assert len(files) >= 3 and sum(path.stat().st_size for path in files) <= 12_000

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("jaxmem.kv_cache.prefix_files.save", full)
    reading(cache, prompt(71, 72, 73), 200)
    stats = cache.stats()
    assert stats.failed_writes == 3 and stats.last_error.startswith("No space left")


def test_equal_keys_of_other_tokens_are_no_hit(monkeypatch):
    monkeypatch.setattr(prefix_index, "KEY_BYTES", 1)
    cache, draw, written = jm.Prefixes(40, host=3_000, size=4), random.Random(0), {}
    for i in range(400):
        asked = prompt(*(draw.randrange(8) for _ in range(4)))
        hit, pages = reading(cache, asked, 10 * i + 1)
        got = [*hit.ids, *(int(blob["keys"][0, 0]) for blob in hit.blobs)]
        for j, page in enumerate(got):
            assert written[page] == tuple(asked[: 4 * j + 4])
        written |= {page: tuple(asked[: 4 * j + 4]) for j, page in enumerate(pages)}
    assert cache.stats().hit_rate > 0.05


def test_what_a_cache_holds_is_what_was_held_less_what_was_freed():
    cache, draw, pool = jm.Prefixes(30, size=4), random.Random(0), set()
    free, pinned = list(range(1, 100)), []
    for _ in range(500):
        asked = prompt(*(draw.randrange(3) for _ in range(draw.randrange(1, 9))))
        hit = cache.match(asked)
        new = [free.pop() for _ in range(len(asked) // 4 - len(hit.ids))]
        moves = cache.insert(asked, [*hit.ids, *new])
        pool = (pool | set(moves.held)) - set(moves.freed)
        cache.pin(kept := [i for i in hit.ids if i in pool][:2])
        pinned.append(kept)
        if len(pinned) > 3:
            cache.unpin(pinned.pop(0))
        gone = cache.evict(draw.randrange(3))
        pool -= set(gone)
        free += [*(set(new) - set(moves.held)), *moves.freed, *gone]
        assert set(cache._tiers.key_of) == pool and len(pool) <= 30
        assert {i for ids in pinned for i in ids} <= pool and len(pool) + len(free) == 99


@pytest.mark.parametrize("limit", [40, 100])
def test_auto_is_nearer_the_better_policy(limit):
    draw, found = random.Random(0), {}
    chats = [[c] for c in range(30)]
    for chat in (draw.choice(chats) for _ in range(600)):
        chat.append(10**6 + len(chat) + 1000 * chat[0])
        found[len(found)] = list(chat)
    rates = []
    for policy in (Aged(), Lru(), Auto(limit)):
        index = PrefixIndex(limit, policy)
        rates.append(sum(index.fetch(keys) for keys in found.values()))
        assert len(index) <= limit
    assert rates[2] > (rates[0] + rates[1]) / 2


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"device": 0}, ValueError, "device is 0"),
        ({"device": "8"}, TypeError, "device is '8'"),
        ({"chunk": 6}, ValueError, "chunk is 6, expected a multiple of the size 4"),
        ({"host": -1}, ValueError, "host is -1"),
        ({"host": "much"}, ValueError, "'much' is no size"),
        ({"disk": 10}, ValueError, "disk is 10 and path None"),
        ({"path": "a"}, ValueError, "expected both or none"),
        ({"policy": "fifo"}, ValueError, "policy is 'fifo'"),
        ({"salt": 3}, TypeError, "salt is 3"),
        ({"disk": 10, "path": __file__, "of": 1}, ValueError, "expected a folder"),
        ({"disk": 10, "path": "a"}, ValueError, "disk without of"),
    ],
)
def test_wrong_options_are_refused(options, error, says):
    with pytest.raises(error, match=says):
        jm.Prefixes(**{"device": 8, "size": 4, **options})


def test_wrong_pages_and_tokens_are_refused():
    cache = jm.Prefixes(8, size=4)
    cache.insert(prompt(1), [5])
    for ids, says in (([5], "held for another"), ([0], "from 1 on"), ([6, 6], "different pages")):
        with pytest.raises(ValueError, match=says):
            cache.insert(prompt(2, 3), ids)
    with pytest.raises(ValueError, match="page 7 is not held"):
        cache.pin([7])
    with pytest.raises(ValueError, match="page 5 is not pinned"):
        cache.unpin([5])
    with pytest.raises(TypeError, match="expected integers"):
        cache.match([0.5])
