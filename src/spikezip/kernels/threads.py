"""How many processor threads torch uses, and what for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from typing import TypeVar

import torch

T = TypeVar("T")


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Within: torch computes with so many threads; then with as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def share_out(work: Callable[[T], None], tasks: list[T]) -> None:
    """Do ``work`` for every task, on as many of torch's threads as there are tasks; each has its share of the others.

    Operations between whose threads little is to be divided gain from that, and code that has but one thread.
    """
    count = torch.get_num_threads()
    workers = min(count, len(tasks))
    if workers < 2:
        for task in tasks:
            work(task)
        return
    grad = torch.is_grad_enabled()

    def alike(task: T) -> None:
        with torch.set_grad_enabled(grad):  # new threads begin with gradients
            work(task)

    with threads(count // workers), ThreadPoolExecutor(workers) as pool:
        begun = [pool.submit(copy_context().run, alike, task) for task in tasks]
        try:
            for each in begun:
                each.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
