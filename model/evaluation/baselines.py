"""Rankers to compare NoteLLM with: each scores a fixed pool of notes for a target.

Shapes: N notes in the pool, T targets, U users, V words, D embedding size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from model.network.checkpoint import MANIFEST, load_manifest
from model.note import Note
from model.text.words import terms

if TYPE_CHECKING:
    from model.data.events import EventTable

MINILM = "MiniLM zero-shot"
_ENCODER_TOKENS = 126


class Ranker(Protocol):
    """Scores every note of its pool as related to a note of the same pool."""

    name: str

    def scores(self, targets: Sequence[int]) -> NDArray[np.float32]:
        """Higher is more related; finite, a new array, shape (len(targets), N). A target's own score means nothing."""
        ...


class Popularity:
    """By the number of users who clicked a note, among users who never met the target.

    Related pairs are made of the clicks of users who met the target: counting those would score the truth by itself.
    """

    name = "popularity"

    def __init__(self, pool: Sequence[Note], events: EventTable) -> None:
        met_UN = _user_by_note(pool, events, np.ones(len(events), dtype=np.bool_))
        self._clicked_UN = _user_by_note(pool, events, events.clicked)
        self._met_NU = met_UN.T.tocsr()
        self._clicks_N = np.asarray(self._clicked_UN.sum(axis=0), dtype=np.float32).reshape(-1)

    def scores(self, targets: Sequence[int]) -> NDArray[np.float32]:
        """Clicks of the other users, shape (len(targets), N)."""
        shared_TN = (self._met_NU[list(targets)] @ self._clicked_UN).toarray()
        others_TN: NDArray[np.float32] = self._clicks_N - shared_TN.astype(np.float32)
        return others_TN


class SameCategory:
    """Notes of the target's category first, then all others, each by popularity."""

    name = "same category, by popularity"

    def __init__(self, pool: Sequence[Note], popularity: Popularity) -> None:
        codes = {name: code for code, name in enumerate(sorted({note.category or "" for note in pool}))}
        self._category_N = np.array([codes[note.category or ""] for note in pool])
        self._has_category_N = np.array([note.category is not None for note in pool])
        self._popularity = popularity

    def scores(self, targets: Sequence[int]) -> NDArray[np.float32]:
        """Popularity, raised above every other note within the category, shape (len(targets), N)."""
        popularity_TN = self._popularity.scores(targets)
        rows = list(targets)
        same_TN = self._category_N[rows, None] == self._category_N[None, :]
        same_TN &= self._has_category_N[rows, None]
        raised_TN: NDArray[np.float32] = popularity_TN + same_TN * (popularity_TN.max() + 1)
        return raised_TN


class TfIdf:
    """Cosine of TF-IDF vectors of words and pairs of words; the document frequencies are the pool's.

    In a pool without a word (emoji alone, say) all are equally far.
    """

    name = "TF-IDF"

    def __init__(self, pool: Sequence[Note]) -> None:
        texts = [text_of(note) for note in pool]
        # scikit-learn refuses an empty vocabulary.
        has_words = any(map(terms, texts))
        self._unit_NV: Any = tfidf_vectorizer().fit_transform(texts) if has_words else _no_words(len(texts))

    def scores(self, targets: Sequence[int]) -> NDArray[np.float32]:
        """Cosines, shape (len(targets), N)."""
        cosine_TN: NDArray[np.float32] = (self._unit_NV[list(targets)] @ self._unit_NV.T).toarray()
        return cosine_TN


class BM25:
    """BM25 of the target's `terms` in each note, in the variant of Lucene, with k1 = 1.2 and b = 0.75.

    The sum over the target's words, each as often as it stands there, of
    ``log(1 + (N - n + 0.5) / (n + 0.5)) * f / (f + k1 * (1 - b + b * length / mean length))``: the word stands in n
    notes, and f times in the note scored. In a pool without a word all scores are 0.
    """

    name = "BM25"

    def __init__(self, pool: Sequence[Note]) -> None:
        import bm25s

        self._terms = [terms(text_of(note)) for note in pool]
        self._index = bm25s.BM25(k1=1.2, b=0.75, method="lucene")
        self._has_words = any(self._terms)
        if self._has_words:  # bm25s divides by their mean number
            self._index.index(self._terms, show_progress=False)

    def scores(self, targets: Sequence[int]) -> NDArray[np.float32]:
        """BM25, shape (len(targets), N)."""
        if not self._has_words:
            return np.zeros((len(targets), len(self._terms)), dtype=np.float32)
        queries = [self._index.get_tokens_ids(self._terms[target]) for target in targets]
        return np.stack([self._index.get_scores_from_ids(query) for query in queries])


class Embeddings:
    """Cosine of given embeddings; ``unit_ND`` holds them with unit norm, float32.

    Args:
        emb_ND: one row a note of the pool, any norm; a row of zeros is equally far from all.

    Raises:
        ValueError: if ``emb_ND`` is no matrix or holds NaN or infinity.
    """

    def __init__(self, name: str, emb_ND: NDArray[np.number]) -> None:
        if emb_ND.ndim != 2:
            raise ValueError(f"{name}: embeddings must form a matrix, got shape {emb_ND.shape}")
        if not np.isfinite(emb_ND).all():
            raise ValueError(f"{name}: embeddings must be finite")
        self.name = name
        self.unit_ND = np.array(emb_ND, dtype=np.float32)
        norms_N1 = np.linalg.norm(self.unit_ND, axis=1, keepdims=True)
        np.divide(self.unit_ND, norms_N1, out=self.unit_ND, where=norms_N1 > 0)

    def scores(self, targets: Sequence[int]) -> NDArray[np.float32]:
        """Cosines, shape (len(targets), N)."""
        cosine_TN: NDArray[np.float32] = self.unit_ND[list(targets)] @ self.unit_ND.T
        return cosine_TN


def sentence_bert_name(encoder: str) -> str:
    """The name of an encoder's row."""
    if encoder == "minilm":
        return MINILM
    return f"SentenceBERT ({encoder}){'' if _is_trained(encoder) else ' zero-shot'}"


def open_sentence_bert(encoder: str, dtype: str = "auto") -> Callable[[Sequence[Note]], NDArray[np.float32]]:
    """Unit vectors of notes by any encoder, see `SentenceEncoder`, as it comes or as it was trained here.

    As it comes it sees the first 126 tokens of a note's whole text, more than a network trained here is shown.

    Raises:
        ValueError: if it cannot be opened, or is NoteLLM.
    """
    from model.inference.sentence_encoder import SentenceEncoder

    trained = _is_trained(encoder)
    opened = SentenceEncoder.open(encoder, content_tokens=_ENCODER_TOKENS, dtype=dtype)
    if trained:
        return opened.embed
    return lambda notes: opened.embed([Note(note.id, content=text_of(note)) for note in notes])


def minilm_vectors(notes: Sequence[Note]) -> NDArray[np.float32]:
    """Those of all-MiniLM-L6-v2, shape (len(notes), 384). ModuleNotFoundError if its package is not installed."""
    return open_sentence_bert("minilm")(notes)


def tfidf_vectorizer() -> Any:
    """scikit-learn's TF-IDF of `terms` and pairs of them, rows of unit norm, float32."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(
        tokenizer=terms, token_pattern=None, lowercase=False, ngram_range=(1, 2), sublinear_tf=True, dtype=np.float32
    )


def _no_words(rows: int) -> Any:
    from scipy.sparse import csr_matrix

    return csr_matrix((rows, 1), dtype=np.float32)


def text_of(note: Note) -> str:
    """Title, content and hashtags in one text, for every baseline."""
    return " ".join(part for part in (note.title, note.content, *note.hashtags) if part)


def clicks_of(pool: Sequence[Note], events: EventTable) -> NDArray[np.int64]:
    """How many users clicked each note of the pool, shape (N,)."""
    return np.asarray(_user_by_note(pool, events, events.clicked).sum(axis=0), dtype=np.int64).reshape(-1)


def _is_trained(encoder: str) -> bool:
    """Whether it is a SentenceBERT that was trained here. Raises ValueError for a NoteLLM."""
    if not (Path(encoder) / MANIFEST).is_file():
        return False
    if load_manifest(Path(encoder)).recipe.architecture == "decoder":
        raise ValueError(f"{encoder} is a checkpoint of NoteLLM, which embeds by [EMB] and not as an encoder")
    return True


def _user_by_note(pool: Sequence[Note], events: EventTable, chosen: NDArray[np.bool_]) -> Any:
    """Sparse 0/1 matrix, shape (users, N): who has a chosen event with which note of the pool."""
    from scipy.sparse import csr_matrix

    place = {note.id: row for row, note in enumerate(pool)}
    place_of_code = np.array([place.get(note_id, -1) for note_id in events.note_ids])
    rows, columns = events.users[chosen], place_of_code[events.notes[chosen]]
    rows, columns = rows[columns >= 0], columns[columns >= 0]
    ones = np.ones(len(rows), dtype=np.int32)
    matrix = csr_matrix((ones, (rows, columns)), shape=(events.num_users, len(pool)))
    matrix.data[:] = 1  # the constructor has added up repeated events
    return matrix
