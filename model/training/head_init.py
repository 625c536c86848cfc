"""Where the head of a decoder starts: at what tells notes apart, or at what a teacher says.

Shapes: N notes, H hidden values, D numbers of an embedding, C notes of a chunk, L tokens.
"""

import torch
from torch import Tensor

from model.network.notellm import NoteLLM
from model.training.examples import Examples, TrainingSet

_HEAD_NOTES = 512


def whiten_head(network: NoteLLM, training_set: TrainingSet) -> None:
    """Start the head as a PCA whitening of some notes' states, so that they differ by what tells them apart.

    States of a pre-trained network share most of their length; a random head keeps that, and every cosine starts
    near 1. Fewer directions than D leave the rest of the head as it is.
    """
    states_NH, _ = _states(network, training_set)
    mean_H = states_NH.mean(dim=0)
    variances, directions_HH = torch.linalg.eigh(torch.cov((states_NH - mean_H).T))
    kept = min(network.dim, len(variances), len(states_NH) - 1)
    # The ridge keeps directions of next to no variance, which are noise, from being blown up to the size of the rest.
    scale = (variances + 0.1 * variances.mean()).rsqrt()
    head_DH = (directions_HH * scale).T.flip(0)[:kept]
    with torch.no_grad():
        network.head.weight[:kept] = head_DH.to(network.head.weight.dtype)
        network.head.bias[:kept] = -(head_DH @ mean_H).to(network.head.bias.dtype)


def follow_teacher(network: NoteLLM, training_set: Examples, teacher_ND: Tensor) -> None:
    """Start the head as the ridge regression of the teacher's vectors on the states of some notes."""
    states_NH, notes = _states(network, training_set, 4 * _HEAD_NOTES)
    mean_H, target_ND = states_NH.mean(dim=0), teacher_ND[notes]
    centred_NH = states_NH - mean_H
    gram_HH = centred_NH.T @ centred_NH
    ridge = 0.1 * gram_HH.diagonal().mean() * torch.eye(len(gram_HH))
    head_DH = torch.linalg.solve(gram_HH + ridge, centred_NH.T @ (target_ND - target_ND.mean(dim=0))).T
    with torch.no_grad():
        network.head.weight.copy_(head_DH)
        network.head.bias.copy_(target_ND.mean(dim=0) - head_DH @ mean_H)


@torch.no_grad()
def _states(network: NoteLLM, training_set: Examples, wanted: int = _HEAD_NOTES) -> tuple[Tensor, list[int]]:
    """States before [EMB] of the notes of the first pairs, float32, shape (N, H), and which notes those are."""
    notes = list(dict.fromkeys(note for pair in training_set.pairs for note in pair))
    step = max(1, len(notes) // wanted)
    notes = notes[::step][:wanted]
    rows = []
    for start in range(0, len(notes), 16):
        chunk = training_set.prompts(notes[start : start + 16])
        with torch.autocast("cpu", torch.bfloat16):
            states_CLH = network.hidden(chunk.ids_CL)
        rows.append(states_CLH[torch.arange(len(chunk.rows)), chunk.before_emb_C].float())
    return torch.cat(rows), notes
