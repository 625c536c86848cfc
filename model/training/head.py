"""A decoder's head: its first weights, by whitening or from a teacher, and its last ones, centered and narrower.

Shapes: N notes, H hidden values, D numbers of an embedding.
"""

import torch
from torch import Tensor, nn

from model.network.notellm import NoteLLM
from model.network.sentence_bert import SentenceBert
from model.training.examples import Examples

_HEAD_NOTES = 512


def whiten_head(network: NoteLLM, training_set: Examples, hide_hashtags: float) -> None:
    """Start the head as a PCA whitening of some notes' states.

    States of a pre-trained network share most of their length; a random head keeps that, and every cosine starts
    near 1. Fewer directions than D leave the rest of the head as it is. Prompts hide hashtags as those of batches do: a
    whitening that never saw the difference would make it large.
    """
    states_NH, _ = paired_states(network, training_set, _HEAD_NOTES, hide_hashtags)
    mean_H = states_NH.mean(dim=0)
    variances, directions_HH = torch.linalg.eigh(torch.cov((states_NH - mean_H).T))
    kept = min(network.dim, len(variances), len(states_NH) - 1)
    # The ridge keeps directions of next to no variance, which are noise, from growing to the size of the rest.
    scale = (variances + 0.1 * variances.mean()).rsqrt()
    head_DH = (directions_HH * scale).T.flip(0)[:kept]
    with torch.no_grad():
        network.head.weight[:kept] = head_DH.to(network.head.weight.dtype)
        network.head.bias[:kept] = -(head_DH @ mean_H).to(network.head.bias.dtype)


def follow_teacher(network: NoteLLM, training_set: Examples, teacher_ND: Tensor, hide_hashtags: float = 0.0) -> None:
    """Start the head as the ridge regression of the teacher's vectors on the states of some notes."""
    states_NH, notes = paired_states(network, training_set, 4 * _HEAD_NOTES, hide_hashtags)
    mean_H, target_ND = states_NH.mean(dim=0), teacher_ND[notes]
    centered_NH = states_NH - mean_H
    gram_HH = centered_NH.T @ centered_NH
    ridge = 0.1 * gram_HH.diagonal().mean() * torch.eye(len(gram_HH))
    head_DH = torch.linalg.solve(gram_HH + ridge, centered_NH.T @ (target_ND - target_ND.mean(dim=0))).T
    with torch.no_grad():
        network.head.weight.copy_(head_DH)
        network.head.bias.copy_(target_ND.mean(dim=0) - head_DH @ mean_H)


@torch.no_grad()
def center(network: NoteLLM | SentenceBert, emb_ND: Tensor, dim: int) -> None:
    """Take the mean of some notes' embeddings out of all embeddings, and keep a head's ``dim`` principal components.

    Embeddings share most of their length after training, too (0.8 on MicroLens), whatever the notes are about: it tells
    no note from another, and hides the rest from cosines. Mu and Viswanath found the same in word vectors
    ("All-but-the-Top", ICLR 2018); the directions that they remove besides cost recall here.
    """
    mean_D = emb_ND.mean(dim=0)
    if isinstance(network, SentenceBert):
        network.center(mean_D)
        return
    head, old = nn.Linear(network.head.in_features, dim), network.head
    kept_DD = torch.eye(dim, device=emb_ND.device)
    if dim < network.dim:
        kept_DD = torch.linalg.eigh(torch.cov((emb_ND - mean_D).T))[1].flip(1)[:, :dim].T
    network.head = head.to(old.weight.device, old.weight.dtype)
    network.head.weight.copy_(kept_DD @ old.weight.float())
    network.head.bias.copy_(kept_DD @ (old.bias.float() - mean_D))


@torch.no_grad()
def paired_states(
    network: NoteLLM, training_set: Examples, count: int = _HEAD_NOTES, hide_hashtags: float = 0.0
) -> tuple[Tensor, list[int]]:
    """States before [EMB] of some notes of pairs, float32, shape (N, H), and the places of those notes."""
    notes = list(dict.fromkeys(note for pair in training_set.pairs for note in pair))
    notes = notes[:: max(1, len(notes) // count)][:count]
    with torch.autocast("cpu", torch.bfloat16):
        groups = [notes[start : start + 16] for start in range(0, len(notes), 16)]
        chunks = [training_set.prompts(group, hide_hashtags) for group in groups]
        return torch.cat([network.states(chunk).float() for chunk in chunks]), notes
