"""The kind of base for a number of vectors.

=================  ==================================  ===================================================
rows of the shard  recipe                              reason
=================  ==================================  ===================================================
below 10,000       flat, float32                       exact, no training; a search is one product of 5 MB
from 10,000 on     IVF{nlist},PQ{D/2}x4fsr, nprobe 16, a flat search grows with the rows; 4-bit codes of
                   re-rank of 4k (at least 100) from   two dimensions each are scanned in registers, but
                   float16                             lose the order of the top 10, so candidates are
                                                       scored again with float16 vectors
=================  ==================================  ===================================================

``r`` codes the residual to the list's center, which FAISS leaves out for fast-scan codes: recall@10 is 0.999
with it and 0.954 without on 100,000 clustered vectors. ``nlist`` is about 4 sqrt(rows), rounded down to a
power of two and to 39 training points a list, below which FAISS calls the clustering unreliable. Once trained, a
base may be searched wider than the table says, until its recall is enough: see `indexer.recall.tune`.
"""

import math
from dataclasses import dataclass

FLAT_BELOW = 10_000
TRAINING_POINTS_PER_LIST = 39
SAMPLE_PER_LIST = 64
FLAT = "flat"


@dataclass(frozen=True, slots=True)
class IndexRecipe:
    """How a base is built and searched; ``notes`` is the number of rows it was chosen for.

    ``name`` is ``flat`` or a string of `faiss.index_factory`. The best
    ``max(min_candidates, rerank * k)`` rows by PQ distance are scored again with their float16 vectors.
    """

    name: str
    notes: int
    nlist: int = 0
    nprobe: int = 0
    rerank: int = 0
    min_candidates: int = 0


def recipe_for(notes: int, dim: int) -> IndexRecipe:
    """The recipe for one shard of ``notes`` vectors.

    Raises:
        ValueError: if the dimension is odd or not positive: codes cover two dimensions each.
    """
    if dim < 2 or dim % 2:
        raise ValueError(f"the dimension must be even and positive; got {dim}")
    if notes < FLAT_BELOW:
        return IndexRecipe(FLAT, notes)
    lists = min(4 * math.sqrt(notes), notes / TRAINING_POINTS_PER_LIST)
    nlist = 2 ** int(math.log2(lists))
    return IndexRecipe(f"IVF{nlist},PQ{dim // 2}x4fsr", notes, nlist=nlist, nprobe=16, rerank=4, min_candidates=100)
