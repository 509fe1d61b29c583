"""Memory that is used again."""

from __future__ import annotations

import functools

import torch

_LARGEST = (32 << 20) - (1 << 12)  #: bytes of the largest allocation that glibc learns from, less its own few


@functools.cache
def keep_freed() -> None:
    """Have the process keep, for the next layer, the memory that one layer gives back.

    glibc maps large tensors apart, and gives the end of its heap back to the system beyond twice the size of the
    largest such tensor that was freed; what it gets anew is written with zeros, page by page. So how long a run takes
    depends on what was freed before: with 32 images a ResNet-18 took a fifth longer in about every other process. One
    tensor of the largest size that counts, freed once and never written to, makes it keep up to 64 MiB. Other
    allocators are left as they are, and so is glibc where ``MALLOC_MMAP_THRESHOLD_`` or ``MALLOC_TRIM_THRESHOLD_`` is
    set.
    """
    torch.empty(_LARGEST, dtype=torch.uint8)
