"""Which kind of base suits how many vectors: the one table, and the one builder.

=================  ==================================  ===================================================
rows of the shard  recipe                              reason
=================  ==================================  ===================================================
below 10,000       flat, float32                       exact, no training; a search is one product of 5 MB
from 10,000 on     IVF{nlist},PQ{D/2}x4fsr, nprobe 16, a flat search grows with the rows; 4-bit codes of
                   re-rank of 4k (at least 100) from   two dimensions each are scanned in registers, but
                   float16                             lose the order of the top 10, so candidates are
                                                       scored again with float16 vectors
=================  ==================================  ===================================================

``r`` codes the residual to the list's centre, which FAISS leaves out for fast-scan codes: recall@10 is 0.999
with it and 0.954 without on 100,000 clustered vectors. ``nlist`` is about 4 sqrt(rows), rounded down to a
power of two and to 39 training points a list, below which FAISS calls the clustering unreliable.
"""

import math

import faiss
import numpy as np

from indexer.base import Base, FlatBase, Floats, IndexRecipe, IvfBase

FLAT_BELOW = 10_000
TRAINING_POINTS_PER_LIST = 39
SAMPLE_PER_LIST = 64


def recipe_for(notes: int, dim: int) -> IndexRecipe:
    """The recipe for one shard of ``notes`` vectors.

    Raises:
        ValueError: if the dimension is odd or not positive: codes cover two dimensions each.
    """
    if dim < 2 or dim % 2:
        raise ValueError(f"the dimension must be even and positive; got {dim}")
    if notes < FLAT_BELOW:
        return IndexRecipe("flat")
    lists = min(4 * math.sqrt(notes), notes / TRAINING_POINTS_PER_LIST)
    nlist = 2 ** int(math.log2(lists))
    return IndexRecipe(f"IVF{nlist},PQ{dim // 2}x4fsr", nlist=nlist, nprobe=16, rerank=4, min_candidates=100)


def build_base(recipe: IndexRecipe, vectors_MD: Floats) -> Base:
    """Train and fill a base from unit vectors, shape (M, D). The same vectors give the same base."""
    if recipe.name == "flat":
        return FlatBase(recipe, vectors_MD)
    ivf = faiss.index_factory(vectors_MD.shape[1], recipe.name, faiss.METRIC_INNER_PRODUCT)
    ivf.train(_sample(vectors_MD, SAMPLE_PER_LIST * recipe.nlist))
    ivf.add(vectors_MD)
    return IvfBase(recipe, vectors_MD.astype(np.float16), ivf)


def _sample(vectors_MD: Floats, count: int) -> Floats:
    if count >= len(vectors_MD):
        return vectors_MD
    rows = np.random.default_rng(0).choice(len(vectors_MD), count, replace=False)
    sample: Floats = vectors_MD[rows]
    return sample
