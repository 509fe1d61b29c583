"""Work is shared out among threads as if one had done it."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from spikezip.kernels import no_compiler, share_out, threads, workers
from spikezip.kernels.alone import has_no_compiler


def test_every_task_is_done_in_the_callers_context():
    seen, at_once = {}, threading.Barrier(2, timeout=60)

    def work(task: int) -> None:
        if task < 2:
            at_once.wait()  # passes only if two threads are here
        seen[task] = (torch.is_grad_enabled(), has_no_compiler(), torch.get_num_threads())

    with threads(5), no_compiler(), torch.no_grad():
        share_out(work, [0, 1], workers())
        assert torch.get_num_threads() == 5
    assert seen == {0: (False, True, 2), 1: (False, True, 2)}


def test_one_thread_works_here():
    seen = []
    with threads(1):
        share_out(lambda task: seen.append((task, threading.current_thread())), [1, 2], workers())
    assert seen == [(1, threading.current_thread()), (2, threading.current_thread())]


def test_what_goes_wrong_is_heard_and_ends_it():
    begun = []

    def work(task: int) -> None:
        begun.append(task)
        time.sleep(0.02)
        raise ValueError(f"task {task}")

    with threads(2), pytest.raises(ValueError, match="task 0"):
        share_out(work, list(range(100)), workers())
    assert len(begun) < 50
