"""Whether a tokenizer can write what the model has to, and outputs can be told apart by its tokens."""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence

from model.text.automaton import SEPARATORS
from model.text.prompt import PromptBuilder

# Names in a message; the others are counted.
_NAMED = 5
_REMEDY = "rename them, or take a base model whose tokenizer knows them"


class VocabularyError(ValueError):
    """Outputs cannot be written or told apart with a tokenizer; the message names them and says what to do."""


def check_outputs(builder: PromptBuilder, categories: Iterable[str]) -> None:
    """Refuse categories and a separator of hashtags that cannot be learned with the builder's tokenizer.

    Raises:
        VocabularyError: if it has no tokens for a category or the separator, or the same tokens for two categories.
    """
    names = sorted(set(categories))
    unknown = [name for name in names if not builder.knows(name)]
    if unknown:
        raise VocabularyError(f"the base model's tokenizer has no tokens for {_listed(map(repr, unknown))}: {_REMEDY}")
    alike = defaultdict(list)
    for name in names:
        alike[tuple(builder.output(name))].append(name)
    same = [" and ".join(_shown(group)) for group in alike.values() if len(group) > 1]
    if same:
        raise VocabularyError(
            f"the base model's tokenizer cannot tell these categories apart: {_listed(same)}; rename or merge them, or "
            "take a base model whose tokenizer can"
        )
    written = b"".join(builder.token_bytes[token] for token in builder.output(SEPARATORS[0])[:-1])
    if written.decode(errors="ignore").strip() != SEPARATORS[0]:
        raise VocabularyError(
            f"the base model's tokenizer cannot write the {SEPARATORS[0]!r} between hashtags: take another base model"
        )


def _shown(names: Sequence[str]) -> list[str]:
    """Names between quotes; with escapes if they look alike, as the two forms of é do."""
    look_alike = len({unicodedata.normalize("NFC", name) for name in names}) < len(names)
    return [ascii(name) if look_alike else repr(name) for name in names]


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    more = f" and {len(every) - _NAMED} more" if len(every) > _NAMED else ""
    return ", ".join(every[:_NAMED]) + more
