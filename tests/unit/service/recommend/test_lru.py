"""The cache against a list in the order of use."""

import random

import pytest

from service.recommend.lru import LruCache


def cache_of(capacity: int, keys: str = "") -> LruCache[str]:
    cache = LruCache[str](capacity)
    for key in keys:
        cache.put(key, key.upper())
    return cache


def test_the_least_recently_used_is_evicted_not_the_newest_nor_the_hot_one():
    cache = cache_of(3, "abc")

    assert cache.use(["a"]) == ["A"]
    cache.put("d", "D")

    assert [key for key in "abcd" if key in cache] == ["a", "c", "d"]


def test_many_are_used_in_their_order_and_a_missing_one_changes_nothing():
    cache = cache_of(3, "abc")

    assert cache.use(["b", "x", "a"]) == ["B", None, "A"]
    cache.put("d", "D")
    cache.put("e", "E")

    assert [key for key in "abcdex" if key in cache] == ["a", "d", "e"]


def test_a_value_that_is_put_again_is_replaced_and_used():
    cache = cache_of(2, "ab")

    cache.put("a", "new")
    cache.put("c", "C")

    assert cache.use(["a", "b", "c"]) == ["new", None, "C"]


@pytest.mark.parametrize("capacity", [1, 2, 7])
def test_random_histories_keep_exactly_the_most_recently_used(capacity):
    draw = random.Random(capacity)
    cache = LruCache[int](capacity)
    by_use: list[str] = []  # the last used last
    keys = "abcdefghij"

    for step in range(2000):
        key = draw.choice(keys)
        if draw.random() < 0.5:
            cache.put(key, step)
            by_use = [*(other for other in by_use if other != key), key][-capacity:]
        elif cache.use([key]) != [None]:
            by_use = [*(other for other in by_use if other != key), key]
        assert {key for key in keys if key in cache} == set(by_use)
