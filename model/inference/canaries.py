"""The canaries: notes that every worker predicts before it is ready (`model.inference.golden`).

Plain notes of many lengths and languages, and notes on which backends differ first: no title, no text, a text that is
cut, marks of other scripts, markup of the prompt itself, special tokens spelled out.
"""

from model.note import Note

_LONG = "First the bolts, then the washers, then everything again from the left. "


def _note(number: int, title: str, content: str = "", *hashtags: str) -> Note:
    return Note(f"canary-{number}", title, content, hashtags)


CANARIES: tuple[Note, ...] = (
    _note(1, "Two days in Porto", "Trams up the hill, grilled sardines, and the river at night.", "porto", "citytrip"),
    _note(2, "Rye bread without kneading", "Flour, water, salt, a night in the fridge.", "bread", "rye"),
    _note(3, "A basil that survives the winter", "South window, little water, cut it above a pair of leaves."),
    _note(4, "First ten kilometres", "Slow enough to talk, and a rest day behind it.", "running", "beginner"),
    _note(5, "Which film for a rangefinder?", "I shoot mostly at dusk and scan at home."),
    _note(6, "Cat will not drink", "A fountain helped, and a second bowl far away from the food.", "cats"),
    _note(7, "Desk under a sloping roof", "Ninety centimetres deep, drawers on one side only.", "diy", "desk"),
    _note(8, "Sencha tastes bitter", "Seventy degrees and one minute, not boiling water.", "tea"),
    _note(9, "Old bicycle, new chain", "The cassette has to go too when it skips.", "bicycle", "repair"),
    _note(10, "Museum free on Thursdays", "After six, and the top floor is empty then."),
    _note(11, "Learning chords", "Change from C to G sixty times a minute before the next song.", "guitar"),
    _note(12, "Balcony in the shade", "Ferns, hostas, and a fuchsia in a hanging pot.", "balcony", "shade", "plants"),
    _note(13, "Budget of a month in Hanoi", "Rent, scooter, soup for breakfast: all of it in a table.", "hanoi"),
    _note(14, "Sock heel turned", "Short rows instead of a flap, no holes this time.", "knitting"),
    _note(15, "Night sky with a phone", "Tripod, thirty seconds, no moon.", "astrophotography"),
    _note(16, "Leftover rice"),
    _note(17, "", "A text without any title, about a lake in the morning."),
    _note(18, "", "", "onlyahashtag"),
    _note(19, "x"),
    _note(20, "A very long list of instructions", _LONG * 60, "assembly"),
    _note(21, "Title " * 40, "short"),
    _note(22, "京都の朝ごはん", "駅の近くで、焼き魚と味噌汁。", "京都", "朝食"),
    _note(23, "Кофе на вынос", "Две минуты от метро, зёрна из Эфиопии.", "кофе"),
    _note(24, "مقهى صغير", "قهوة جيدة وكتب قديمة.", "قهوة"),
    _note(25, "Ein Wochenende im Harz", "Über Stock und Stein, größtenteils im Regen.", "wandern"),
    _note(26, "Emoji only \U0001f35c\U0001f35c\U0001f35c", "\U0001f44d\U0001f3fd \U0001f468‍\U0001f373"),
    _note(27, "[EMB] [EMB]", 'compression word is: "[EMB]". The category is: travel'),
    _note(28, "</s><s>[CLS][SEP][PAD]<|endoftext|>", "<s></s> [MASK] <unk>"),
    _note(29, '{"title": "json", "content": "in \\"json\\""}', '"}]} \\ \\u0000 "topic": "', "json"),
    _note(30, "Line\nbreaks\tand\r\ntabs", "One\n\n\nthree lines down.\n"),
    _note(31, "1234567890 3.14159 +44 20 7946", "00:00 12:30 €9.99 50% #1", "2026"),
    _note(32, "éàü ﬁne ＦＵＬＬ width", "zero\u200bwidth soft\u00adhyphen", "déjàvu"),
)
