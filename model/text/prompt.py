"""Note Compression Prompts (section 4.2): the one place where a note becomes token ids, for training and serving alike.

A prompt reads ``[BOS]<instruction> <note as JSON> The compression word is: "[EMB]". <guidance><output>[EOS]``. It is
put together from pieces that are encoded apart, with special tokens disabled, so that a note which contains ``[EMB]``
or ``The category is:`` stays plain text, and so that cutting a long note never touches the tail.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from model.note import Note
from model.text.hashtags import clean_tags

if TYPE_CHECKING:
    from tokenizers import Tokenizer

EMB = "[EMB]"
TAIL = ' The compression word is: "'

# Known hashtags beyond this are cut, like title and content, so that no note outgrows the network's positions.
TOPICS_TOKENS = 40

Task = Literal["category", "topics"]

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
# A token covers a handful of characters; text far beyond the last token kept need not be encoded at all.
_CHARS_PER_TOKEN = 32


@dataclass(frozen=True, slots=True)
class Template:
    """The wording around a note. It is part of the model's identity: change the wording, change the version.

    ``instruction`` and ``guidance`` may hold ``{j}``, the number of hashtags asked for. ``known_topics`` says for
    each task whether the note's hashtags stand in its JSON.
    """

    name: str
    version: int
    instruction: dict[Task, str]
    guidance: dict[Task, str]
    known_topics: dict[Task, bool]
    tail: str = TAIL
    as_json: bool = True
    ends_note: bool = False

    @property
    def shares_prefix(self) -> bool:
        """True when every task has the same text before [EMB], so that one prefill serves them all."""
        return self.instruction["category"] == self.instruction["topics"]

    @property
    def identity(self) -> str:
        """Every word of the template, for the fingerprint."""
        return json.dumps(
            [
                [self.name, self.version, self.instruction, self.guidance, self.known_topics],
                [self.tail, EMB, self.as_json, self.ends_note],
            ],
            sort_keys=True,
        )


_COMPRESS = "Extract the note information in json format, compress it into one word for recommendation"

PAPER = Template(
    name="paper",
    version=1,
    instruction={
        "category": f"{_COMPRESS}, and generate the category of the note. ",
        "topics": f"{_COMPRESS}, and generate {{j}} topics of the note. ",
    },
    guidance={"category": '". The category is: ', "topics": '". The {j} topics are: '},
    known_topics={"category": True, "topics": False},
)

# The task is named after [EMB]. The hashtags in the JSON are the known ones (all, some or none of the note's); the
# topics task asks for the others, as a draft needs.
SHARED = Template(
    name="shared",
    version=1,
    instruction={
        "category": "Compress the note into one word. ",
        "topics": "Compress the note into one word. ",
    },
    guidance={"category": '". The category is: ', "topics": '". The {j} topics are: '},
    known_topics={"category": True, "topics": True},
)

_ALL_TOPICS: dict[Task, bool] = {"category": True, "topics": True}

# The prompts of the rivals in table 2: PromptEOL asks for one word, RepLLaMA takes the end token of the bare text.
EOL = Template(
    name="eol",
    version=1,
    instruction={"category": 'This note: "', "topics": 'This note: "'},
    guidance=SHARED.guidance,
    known_topics=_ALL_TOPICS,
    tail='" means in one word: "',
    as_json=False,
)
BARE = Template(
    name="bare",
    version=1,
    instruction={"category": "", "topics": ""},
    guidance=SHARED.guidance,
    known_topics=_ALL_TOPICS,
    tail="",
    as_json=False,
    ends_note=True,
)

TEMPLATES = {template.name: template for template in (PAPER, SHARED, EOL, BARE)}


@dataclass(frozen=True, slots=True)
class SpecialIds:
    """The ids that frame a prompt; a model without its own pad token pads with the end token."""

    bos: int | None
    eos: int
    emb: int
    pad: int


class PromptBuilder:
    """Builds token ids for one tokenizer, template and pair of token limits.

    Raises:
        ValueError: if the tokenizer has no ``[EMB]`` token.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        special: SpecialIds,
        template: Template,
        title_tokens: int,
        content_tokens: int,
    ) -> None:
        # Imported here, because a process that only loads manifests has no tokenizer.
        from tokenizers import Tokenizer

        if tokenizer.token_to_id(EMB) != special.emb:
            raise ValueError(f"the tokenizer has no {EMB} token with id {special.emb}")
        self._tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self._tokenizer.encode_special_tokens = True  # special tokens in a note's text are plain text
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.special = special
        self.template = template
        self.title_tokens = title_tokens
        self.content_tokens = content_tokens
        self._pieces: dict[str, list[int]] = {}

    def prompts(self, notes: Sequence[Note], task: Task = "category", j: int = 5) -> list[list[int]]:
        """Token ids of each note up to and including ``[EMB]``, in order.

        The note's JSON names title, topic (when the template shows known hashtags for the task) and content, as the
        paper does; title and content are cut by tokens before the prompt is put together.
        """
        head = self._piece(self.template.instruction[task].format(j=j))
        head = head if self.special.bos is None else [self.special.bos, *head]
        titles = self._cut([note.title for note in notes], self.title_tokens)
        contents = self._cut([note.content for note in notes], self.content_tokens)
        topics: Sequence[str | None] = [None] * len(notes)
        if self.template.known_topics[task]:
            topics = self._cut([topics_text(note.hashtags) for note in notes], TOPICS_TOKENS)
        body_of = _as_json if self.template.as_json else _as_text
        texts = [body_of(*fields) for fields in zip(titles, topics, contents, strict=True)]
        bodies = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        end = [self.special.eos] if self.template.ends_note else []
        tail = [*self._piece(self.template.tail), *end, self.special.emb]
        built = [[*head, *body.ids, *tail] for body in bodies]
        for ids in built:
            assert ids.count(self.special.emb) == 1, "exactly one [EMB] a prompt"
        return built

    def guidance(self, task: Task, j: int = 5) -> list[int]:
        """Token ids between ``[EMB]`` and the output."""
        return self._piece(self.template.guidance[task].format(j=j))

    def output(self, text: str) -> list[int]:
        """Token ids of a category or of a list of hashtags, with the end token."""
        return [*self._tokenizer.encode(text, add_special_tokens=False).ids, self.special.eos]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of output tokens, special tokens left out."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def knows(self, text: str) -> bool:
        """Whether the tokenizer has tokens of its own for every letter and digit of the text, and for some of it."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        known = {
            place
            for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True)
            if self.token_bytes[token]
            for place in range(start, end)
        }
        return bool(known) and all(place in known for place, letter in enumerate(text) if letter.isalnum())

    def reads(self, note: Note) -> bool:
        """Whether the tokenizer has a token of its own for some letter, digit or pictograph of a note's prompt."""
        topics = topics_text(note.hashtags) if self.template.known_topics["category"] else ""
        limits = ((note.title, self.title_tokens), (topics, TOPICS_TOKENS), (note.content, self.content_tokens))
        return any(self._reads(*self._cut([text], limit)) for text, limit in limits)

    def _reads(self, text: str) -> bool:
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return any(
            self.token_bytes[token] and any(map(_says_something, text[start:end]))
            for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True)
        )

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """See `model.text.token_bytes`; the tokens that frame a prompt have none."""
        from model.text.token_bytes import token_bytes  # which a process without a tokenizer does not need

        framing = (self.special.bos, self.special.eos, self.special.emb, self.special.pad)
        return [b"" if token in framing else text for token, text in enumerate(token_bytes(self._tokenizer))]

    def _piece(self, text: str) -> list[int]:
        if text not in self._pieces:
            self._pieces[text] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return self._pieces[text]

    def _cut(self, texts: Sequence[str], max_tokens: int) -> list[str]:
        plain = [plain_text(text[: max_tokens * _CHARS_PER_TOKEN]) for text in texts]
        encodings = self._tokenizer.encode_batch(plain, add_special_tokens=False)
        return [
            text if len(encoding.ids) <= max_tokens else text[: encoding.offsets[max_tokens - 1][1]]
            for text, encoding in zip(plain, encodings, strict=True)
        ]


def _says_something(letter: str) -> bool:
    return letter.isalnum() or unicodedata.category(letter) == "So"


def plain_text(text: str) -> str:
    """NFKC first, and only then without control characters and lone surrogates; white space folded."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    return " ".join(_CONTROL.sub(" ", unicodedata.normalize("NFKC", text)).split())


def topics_text(hashtags: Sequence[str]) -> str:
    """Hashtags as prompts and outputs have them, clean: ``citywalk, coffee``."""
    return ", ".join(clean_tags(hashtags))


def _as_text(title: str, topics: str | None, content: str) -> str:
    return " ".join(part for part in (title, topics, content) if part)


def _as_json(title: str, topics: str | None, content: str) -> str:
    fields = {"title": title} if topics is None else {"title": title, "topic": topics}
    return json.dumps({**fields, "content": content}, ensure_ascii=False)
