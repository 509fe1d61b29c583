"""Data sets of labelled images: tensors, deterministic batches and held-out splits, from names, folders or arrays.

:func:`open_data` is the way in.
"""

from spikezip.data.augment import Augmentation, ResizedCrop, Shift
from spikezip.data.images import ImageData, ImageDataset
from spikezip.data.opening import DATA_SETS, open_data
from spikezip.data.root import cache_root, data_root

__all__ = [
    "DATA_SETS",
    "Augmentation",
    "ImageData",
    "ImageDataset",
    "ResizedCrop",
    "Shift",
    "cache_root",
    "data_root",
    "open_data",
]
