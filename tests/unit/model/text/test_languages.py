"""The language of a note: right where it is clear, none where it is not."""

from collections import Counter

import pytest

from model.data.samples.generate import sample_notes
from model.text.languages import LANGUAGES, _detector, _looked_closely, detect_language, detect_languages

CLEAR = {
    "en": "How to make the best sourdough bread at home",
    "de": "Wie man gutes Sauerteigbrot zu Hause backt",
    "fr": "Comment faire un bon pain au levain",
    "es": "Cómo hacer un buen pan de masa madre en casa",
    "it": "Come fare un buon pane in casa",
    "pt": "Como fazer um bom pão de fermentação natural",
    "nl": "Hoe maak je een goed zuurdesembrood",
    "sv": "Hur man bakar gott surdegsbröd",
    "pl": "Jak upiec dobry chleb na zakwasie",
    "ru": "Как испечь хороший хлеб на закваске",
    "uk": "Три дні в Кіото, чудова подорож",
    "tr": "Evde güzel ekşi mayalı ekmek nasıl yapılır",
    "vi": "Ba ngày ở Kyoto",
    "id": "Cara membuat roti yang enak dengan bahan sederhana",
    "zh": "三天京都之旅",
    "ja": "京都で過ごす三日間",
    "ko": "서울 여행 3일",
    "th": "สามวันในเกียวโต",
    "ar": "ثلاثة أيام في كيوتو",
    "hi": "क्योटो में तीन दिन",
}


@pytest.mark.parametrize(("language", "text"), CLEAR.items())
def test_a_clear_text_has_its_language_as_a_title_or_as_a_content(language, text):
    assert detect_language(text, "") == detect_language("", text) == language
    assert language in LANGUAGES


OTHERS = {
    "af": "Hoe om goeie suurdeegbrood tuis in jou eie kombuis te bak",
    "ca": "Com fer un bon pa de massa mare a casa amb ingredients senzills",
    "is": "Hvernig á að baka gott súrdeigsbrauð heima í eldhúsinu",
    "lt": "Kaip namuose iškepti gerą raugintos tešlos duoną",
    "mr": "घरी चांगला ब्रेड कसा बनवायचा ते आज आपण पाहूया",
    "sk": "Ako upiecť dobrý kváskový chlieb doma v obyčajnej rúre",
    "sw": "Jinsi ya kutengeneza mkate mzuri nyumbani kwa viungo rahisi",
}


@pytest.mark.parametrize(("language", "text"), OTHERS.items())
def test_a_text_of_another_language_is_not_taken_for_a_relative(language, text):
    assert language not in LANGUAGES
    assert detect_language(text, "") is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n",
        "🍜🍜🍜",
        "123 456",
        "ok",
        "OOTD",
        "lol",
        "Kyoto",
        "https://example.com/how-to-make-bread",
        "@the_baker",
    ],
)
def test_what_says_nothing_clear_has_none(text):
    assert detect_language(text, text) is None


def test_the_beginning_decides_however_long_the_text():
    assert detect_language("", CLEAR["de"] * 20 + CLEAR["ru"] * 500) == "de"


def test_a_beginning_that_is_unclear_is_read_on():
    unclear = "123 OOTD! 456, ok? " * 5
    assert detect_language("", unclear) is None

    assert detect_languages([("", unclear + CLEAR["de"]), ("", unclear + CLEAR["fr"])]) == ["de", "fr"]
    assert detect_language("", unclear + CLEAR["de"]) == "de"


def test_a_clear_beginning_tells_what_the_whole_would():
    texts = [f"{note.title}\n{note.content}"[:200] for note in sample_notes()[::8]]
    texts += [f"{text}. {other}. {text}" for text in CLEAR.values() for other in (CLEAR["en"], text)]
    whole = [
        best.language.iso_code_639_1.name.lower() if best.value >= 0.8 else None
        for best, *_ in _detector().compute_language_confidence_values_in_parallel([text[:200] for text in texts])
    ]

    differ = sum((found or None) != one for found, one in zip(_looked_closely(texts), whole, strict=True))
    assert differ <= len(texts) // 100


def test_two_detectors_are_right_as_often_as_the_slower_one_alone():
    texts = [("en", f"{note.title}\n{note.content}"[:200]) for note in sample_notes()[::8]]
    texts += [(own, f"{text}. {other}. {text}") for own, text in CLEAR.items() for other in (CLEAR["en"], text)]
    alone = sum(
        own == found for (own, _), found in zip(texts, _looked_closely([text for _, text in texts]), strict=True)
    )
    both = sum(own == detect_language("", text) for own, text in texts)

    assert both > alone
    assert both >= 0.96 * len(texts)


def test_many_are_detected_as_each_alone_in_order():
    notes = [("", text) for text in CLEAR.values()] + [("8", "!"), ("https://de.wikipedia.org", CLEAR["en"])]
    assert detect_languages(notes) == [detect_language(*note) for note in notes]
    assert detect_languages([]) == []


def test_sample_notes_are_english_or_now_and_then_unclear():
    notes = sample_notes()[::8]
    found = Counter(detect_language(note.title, note.content) for note in notes)

    assert found.keys() <= {"en", None}
    assert found["en"] >= 0.99 * len(notes)
