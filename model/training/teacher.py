"""A teacher: a sentence encoder, or a larger NoteLLM; the embedding stays close to its vectors in training.

A decoder made of an encoder's weights ranks far worse than the encoder, which can teach it; and a small model can have
the vectors of a large one. Shapes: N notes, H the teacher's size, D the embedding's.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.network.checkpoint import MANIFEST, load_manifest
from model.note import Note
from model.recipes import Recipe

Floats = NDArray[np.float32]


def principal_components(vectors_NH: Floats, dim: int) -> Floats:
    """The vectors' ``dim`` strongest centered components as unit vectors, shape (N, D); zeros fill up a smaller H.

    Their cosines are those of the centered vectors.
    """
    centered_NH = vectors_NH - vectors_NH.mean(axis=0)
    directions_HH = np.linalg.eigh(centered_NH.T @ centered_NH)[1][:, ::-1]
    reduced_ND = centered_NH @ directions_HH[:, :dim]
    reduced_ND /= np.linalg.norm(reduced_ND, axis=1, keepdims=True).clip(min=1e-6)
    return np.pad(reduced_ND, ((0, 0), (0, dim - reduced_ND.shape[1])))


def teacher_vectors(name: str, notes: Sequence[Note], recipe: Recipe) -> Floats:
    """Unit vectors of a teacher, shape (N, H): of a NoteLLM by the folder of its checkpoint, or of an encoder (see
    `open_encoder`), with texts cut as the recipe cuts them.

    In bfloat16: several times faster where the CPU has it.
    """
    import torch

    from model.inference.hf import HfBackend
    from model.inference.many import embed_all
    from model.inference.sentence_encoder import SentenceEncoder

    folder = Path(name)
    if (folder / MANIFEST).is_file() and load_manifest(folder).recipe.architecture == "decoder":
        return embed_all(HfBackend.open(folder, "bfloat16"), notes)
    with torch.autocast("cpu", torch.bfloat16):
        encoder = SentenceEncoder.open(name, recipe.title_tokens, recipe.content_tokens)
        return encoder.embed(notes)
