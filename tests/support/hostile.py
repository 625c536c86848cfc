"""Notes that mean harm: special tokens, pieces of prompts, JSON, control characters, endless texts."""

import random
from collections.abc import Callable

from model.note import Note
from model.text.prompt import EMB, TEMPLATES

SPECIAL_TOKENS = (
    *(EMB, EMB, EMB, EMB, "[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]", "<s>", "</s>", "<pad>", "<unk>", "<mask>"),
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|eot_id|>", "<|end_of_text|>"),
    *("<|reserved_special_token_0|>", "<|start_header_id|>", "[INST]", "[/INST]", "<<SYS>>", "<think>", "</think>"),
)
PROMPT_PIECES = tuple(
    text
    for template in TEMPLATES.values()
    for text in (template.tail, *template.instruction.values(), *template.guidance.values())
    if text
)
JSON_PIECES = ('"', '"}', '\\"', "\\u0000", "\\ud800", '{"title": "', '", "content": "', "[]", "null", "\\", "}" * 9)
MARKUP = (
    "<script>alert(1)</script>",
    "<b>",
    "&amp;",
    "'; DROP TABLE notes; --",
    "%s%n",
    "${jndi:ldap://x}",
    "../../etc",
)
CONTROLS = (*map(chr, range(0x20)), *map(chr, range(0x7F, 0xA0)), "\u2028", "\u2029", "\ufeff", "\ufffe", "\uffff")
INVISIBLE = ("\u200b", "\u200c", "\u200d", "\u2060", "\u00ad", "\u202a", "\u202e", "\u2066", "\u2069", "\U000e0041")
MARKS = ("\u0301", "\u0308", "\u0489", "\u20dd", "\ufe0f", "\u064b", "\u0e49")
SCRIPTS = (
    "مرحبا بالعالم",
    "שלום עולם",
    "京都の夜",
    "서울",
    "Ελλάδα",
    "ﷺ",
    "ﬁ",
    "①",
    "Ⅷ",
    "👩‍👩‍👧‍👦",
    "🇨🇳",
    "𝔘𝔫𝔦",
    "ı",
    "ẞ",
    "\U0010ffff",
)
SURROGATES = ("\ud800", "\udfff", "\ude00\ud83d")  # the API refuses these; a file of notes may hold them

LONG = 20_000


def hostile_notes(count: int = 1000, long: int = 60, seed: int = 0) -> list[Note]:
    """So many notes, always the same for a seed; the first ``long`` of them with a text of 20,000 characters."""
    chance = random.Random(seed)
    return [_note(chance, number, is_long=number < long) for number in range(count)]


def _note(chance: random.Random, number: int, *, is_long: bool) -> Note:
    content = _long(chance) if is_long else _mixed(chance, 6)
    hashtags = tuple(_mixed(chance, 2)[:64] for _ in range(chance.choice([0, 0, 0, 1, 1, 2, 3, 30])))
    return Note(f"hostile-{number}", _mixed(chance, 4)[:300], content, hashtags)


def _mixed(chance: random.Random, most: int) -> str:
    """Pieces of one kind or of all, with or without spaces between them; sometimes nothing at all."""
    kinds = (SPECIAL_TOKENS, PROMPT_PIECES, JSON_PIECES, MARKUP, CONTROLS, INVISIBLE, MARKS, SCRIPTS, SURROGATES)
    kind = chance.choice(kinds)
    mixed = chance.random() < 0.5
    pieces = [chance.choice(chance.choice(kinds) if mixed else kind) for _ in range(chance.randint(0, most))]
    return chance.choice(["", " ", "a"]).join(pieces)


def _long(chance: random.Random) -> str:
    texts: tuple[Callable[[], str], ...] = (
        lambda: "a" * LONG,
        lambda: " " * LONG,
        lambda: "\x00" * LONG,
        lambda: "a" + "\u0301" * LONG,
        lambda: "京" * LONG,
        lambda: "ﷺ" * LONG,
        lambda: '"' * LONG,
        lambda: "\\" * LONG,
        lambda: "👩‍👩‍👧‍👦" * LONG,
        lambda: "\u200b" * LONG,
        lambda: "\udfff" * LONG,
        lambda: chance.choice(SPECIAL_TOKENS) * LONG,
        lambda: chance.choice(PROMPT_PIECES) * LONG,
        lambda: "".join(chr(chance.randrange(0x110000)) for _ in range(LONG)),
    )
    return chance.choice(texts)()[:LONG]
