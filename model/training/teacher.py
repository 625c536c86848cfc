"""A teacher: a sentence encoder whose vectors NoteLLM's embedding stays close to while it learns.

A decoder made of an encoder's weights has lost most of what the encoder knew about sentences; its own encoder can
teach it that again. Shapes: N notes, H the teacher's size, D the embedding's.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.network.minilm import minilm_folder
from model.note import Note
from model.recipes import Recipe

Floats = NDArray[np.float32]

_ROWS = 1024  # notes compared at once: with 100,000 notes 400 MB


def teacher_folder(name: str) -> Path:
    """Where an encoder's weights are: ``minilm``, or a folder.

    Raises:
        ValueError: if the folder holds no encoder with its tokenizer. ModuleNotFoundError if MiniLM is not installed.
    """
    if name == "minilm":
        return minilm_folder()
    if not (Path(name) / "tokenizer.json").is_file():
        raise ValueError(f"{name} is no encoder: tokenizer.json is missing there")
    return Path(name)


def principal_components(vectors_NH: Floats, dim: int) -> Floats:
    """The vectors' ``dim`` strongest centred components as unit vectors, shape (N, D); zeros fill up a smaller H.

    Between them cosines say what they said before, less what all the notes have in common.
    """
    centred_NH = vectors_NH - vectors_NH.mean(axis=0)
    directions_HH = np.linalg.eigh(centred_NH.T @ centred_NH)[1][:, ::-1]
    reduced_ND = centred_NH @ directions_HH[:, :dim]
    reduced_ND /= np.linalg.norm(reduced_ND, axis=1, keepdims=True).clip(min=1e-6)
    return np.pad(reduced_ND, ((0, 0), (0, dim - reduced_ND.shape[1])))


def hard_negatives(
    vectors_ND: Floats, notes: Sequence[int], related: dict[int, set[int]], count: int
) -> dict[int, list[int]]:
    """For each of ``notes``, the ``count`` others closest by cosine that are not related to it, best first."""
    found: dict[int, list[int]] = {}
    for start in range(0, len(notes), _ROWS):
        rows = notes[start : start + _ROWS]
        scores_RN = vectors_ND[list(rows)] @ vectors_ND.T
        for note, scores_N in zip(rows, scores_RN, strict=True):
            unwanted = related.get(note, set()) | {note}
            enough = min(count + len(unwanted), len(scores_N))
            closest = np.argpartition(-scores_N, enough - 1)[:enough]
            ordered = closest[np.argsort(-scores_N[closest], kind="stable")].tolist()
            found[note] = [other for other in ordered if other not in unwanted][:count]
    return found


def teacher_vectors(name: str, notes: Sequence[Note], recipe: Recipe) -> Floats:
    """Unit vectors of a teacher that reads as much as its pupil, shape (N, H).

    As bfloat16 gives them: several times faster where the CPU has it.
    """
    import torch

    from model.inference.sentence_encoder import SentenceEncoder

    with torch.autocast("cpu", torch.bfloat16):
        encoder = SentenceEncoder.open(teacher_folder(name), recipe.title_tokens, recipe.content_tokens)
        return encoder.embed(notes)
