"""Reading ahead by threads: the order, the place of an error, how far ahead, and the end."""

from __future__ import annotations

import threading
import time

import pytest

from harps_dist.data.read_ahead import AHEAD, read_ahead


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_items_come_in_order(threads):
    def read(number: int) -> int:
        time.sleep(0.001 * (number * 7 % 5))  # later ones are often ready first
        return number * number

    assert list(read_ahead(read, range(40), threads)) == [number * number for number in range(40)]


@pytest.mark.parametrize("threads", [0, 2])
def test_an_error_comes_in_the_place_of_its_item(threads):
    def read(number: int) -> int:
        if number == 5:
            raise ValueError("five")
        return number

    stream, seen = read_ahead(read, range(9), threads), []
    with pytest.raises(ValueError, match="five"):
        seen.extend(iter(stream.__next__, None))
    assert seen == [0, 1, 2, 3, 4]


def test_threads_read_at_the_same_time_and_not_too_far_ahead():
    together, begun = threading.Barrier(3, timeout=30), []

    def read(number: int) -> int:
        begun.append(number)
        if number < 3:
            together.wait()  # passes when three are at it
        return number

    stream = read_ahead(read, range(1000), 3)
    assert next(stream) == 0
    time.sleep(0.2)
    assert len(begun) <= AHEAD * 3 + 2
    stream.close()


def test_nothing_is_begun_for_who_does_not_ask():
    begun = []
    stream = read_ahead(begun.append, range(10), 0)
    next(stream)
    assert begun == [0]


def test_a_closed_stream_begins_nothing_more_and_leaves_no_thread():
    begun, gate = [], threading.Event()

    def read(number: int) -> None:
        begun.append(number)
        if number:
            gate.wait(30)

    stream = read_ahead(read, range(1000), 2)
    next(stream)
    threading.Timer(0.2, gate.set).start()
    stream.close()
    assert len(begun) <= 4
    assert not [one for one in threading.enumerate() if one.name.startswith("read-ahead")]
