"""How many processor threads torch uses, and what for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from typing import TypeVar

import torch

T = TypeVar("T")
_MOST = 16  #: workers: Python lets one thread at a time in, and takes about a twentieth of what a worker does


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Within: torch computes with so many threads; then with as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def workers() -> int:
    """How many tasks are best done at once: as many as torch has threads, up to a limit."""
    return min(torch.get_num_threads(), _MOST)


def share_out(work: Callable[[T], None], tasks: list[T], at_once: int) -> None:
    """Do ``work`` for every task, so many of them at once, each with its share of torch's threads.

    Code that has but one thread gains from that, and so do operations that are too small to be divided.
    """
    at_once = min(at_once, len(tasks))
    if at_once < 2:
        for task in tasks:
            work(task)
        return
    share = max(1, torch.get_num_threads() // at_once)
    inference, grad = torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    def alike(task: T) -> None:
        with torch.inference_mode(inference), torch.set_grad_enabled(grad):  # new threads begin in neither
            work(task)

    # Each thread has a number of its own; the libraries below torch's operations would begin with all.
    with threads(share), ThreadPoolExecutor(at_once, initializer=torch.set_num_threads, initargs=(share,)) as pool:
        begun = [pool.submit(copy_context().run, alike, task) for task in tasks]
        try:
            for each in begun:
                each.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
