"""The store of a base: its rows' vectors in float16, in memory or mapped from a file. An exact re-rank reads them.

Legend: M rows, D dimension, B = 2 D bytes of a row.
"""

import mmap
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from indexer.low_priority import throttle

# The stubs that come with FAISS know neither keyword parameters nor arrays as arguments.
_faiss: Any = faiss

Bytes = NDArray[np.uint8]

SCRATCH_PREFIX = "scratch-"


def empty_store(dim: int) -> Any:
    """A store without rows, which encodes vectors as those of all stores are."""
    return _faiss.IndexScalarQuantizer(dim, _faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)


def build_store(pieces: Iterable[Bytes], folder: Path | None) -> Any:
    """A store of float16 vectors from pieces of their bytes, shape (M, B).

    With a folder, it is mapped from a file there that vanishes with the process: the system may drop its pages.
    Python maps it: FAISS unmaps hundreds of MB with the GIL held, 10 ms without a search.
    """
    if folder is None:
        return _store_over(np.concatenate(list(pieces)))
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=SCRATCH_PREFIX) as file:
        for codes_MB in pieces:
            start_s = time.perf_counter()
            file.write(codes_MB.data)
            throttle(start_s)
        file.flush()
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return _store_over(np.frombuffer(mapping, dtype=np.uint8).reshape(-1, codes_MB.shape[1]))


def map_store(path: Path) -> Any:
    """A store mapped from a file."""
    return _faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)


def _store_over(codes_MB: Bytes) -> Any:
    """A store over this memory, which is not copied."""
    store = empty_store(codes_MB.shape[1] // 2)
    no_owner = _faiss.MaybeOwnedVectorUInt8().owner
    store.codes = _faiss.MaybeOwnedVectorUInt8.create_view(faiss.swig_ptr(codes_MB), codes_MB.size, no_owner)
    store.ntotal = len(codes_MB)
    store.referenced_objects = [codes_MB]
    return store
