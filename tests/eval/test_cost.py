"""Seconds and memory of a call."""

import sys
import time

import numpy as np
import pytest

from eval import cost

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory can be reset on Linux only")


def _take(megabytes: int) -> int:
    return int(np.ones(megabytes * 1_000_000, np.uint8).sum())


@on_linux
def test_memory_is_the_rise_of_each_call():
    """Also where the allocator keeps what was freed, and after a call that took more."""
    for megabytes in (200, 50, 200):
        result, found = cost.measure(_take, megabytes)
        assert result == megabytes * 1_000_000
        assert found.megabytes == pytest.approx(megabytes, abs=10)


@on_linux
def test_small_pieces_are_counted_each_time():
    def pieces():
        return len([bytes(1000) for _ in range(100_000)])

    found = [cost.measure(pieces)[1].megabytes for _ in range(3)]
    assert min(found) > 90


def test_seconds():
    _, found = cost.measure(time.sleep, 0.05)
    assert 0.05 <= found.seconds < 5


@pytest.mark.parametrize("lacking", ["platform", "files", "entry"])
def test_no_memory_where_the_system_does_not_tell(lacking, monkeypatch, tmp_path):
    if lacking == "platform":
        monkeypatch.setattr(sys, "platform", "darwin")
    else:
        monkeypatch.setattr(cost, "_PROCESS", tmp_path if lacking == "entry" else tmp_path / "none")
        (tmp_path / "status").write_text("Name:\tpython\n")
    assert cost.measure(_take, 1)[1].megabytes is None


def test_errors_pass():
    with pytest.raises(ZeroDivisionError):
        cost.measure(lambda: 1 / 0)
