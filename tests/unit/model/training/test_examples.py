from collections import Counter
from dataclasses import replace

import pytest
from support.tiny import NOTES, tiny_tokenizer
from tokenizers import Tokenizer

from model.network.base_models import special_ids
from model.network.minilm import minilm_folder
from model.note import Note
from model.recipes import paper, small
from model.text.hashtags import clean_tags
from model.text.prompt import BARE, EOL, PAPER, SHARED, PromptBuilder
from model.training.examples import Batch, Sampling, TrainingSet, balanced

PAIRS = [("n1", "n3"), ("n2", "n4"), ("n5", "n6"), ("n1", "n6"), ("n2", "n6")]


def _set(template=SHARED, notes=NOTES, pairs=PAIRS) -> TrainingSet:
    tokenizer = tiny_tokenizer()
    special = special_ids(tokenizer, "<s>", "</s>", None)
    return TrainingSet(notes, pairs, PromptBuilder(tokenizer, special, template, 20, 80))


def _builder(training_set: TrainingSet) -> PromptBuilder:
    return training_set._builder


def _sampling(pairs: int, share: float | None = 0.0, chunk: int = 3, seed: int = 0, hide: float = 0.0) -> Sampling:
    return Sampling(pairs, share, chunk, seed, hide)


def _outputs(training_set: TrainingSet, batch: Batch) -> dict[int, str]:
    """The output of each row of a batch, found by splitting a chunk's targets at the end token."""
    found = {}
    for chunk in batch.chunks:
        outputs, current = [], []
        for token in chunk.target_T.tolist():
            if token == _builder(training_set).special.eos:
                outputs.append(_builder(training_set).decode(current))
                current = []
            else:
                current.append(token)
        assert not current, "every output ends in the end token"
        writing = dict.fromkeys((chunk.predict_T // chunk.ids_CL.shape[1]).tolist())
        found |= dict(zip([chunk.rows[place] for place in writing], outputs, strict=True))
    return found


def test_a_hashtag_that_the_tokenizer_cannot_write_is_shown_and_never_asked_for():
    tokenizer = Tokenizer.from_file(str(minilm_folder() / "tokenizer.json"))
    tokenizer.no_padding()
    builder = PromptBuilder(tokenizer, special_ids(tokenizer, "[CLS]", "[SEP]", "[PAD]"), SHARED, 20, 80)
    notes = [Note(name, "Dinner on Java", "", ("travel", "ꦗꦮ", "food"), None, 1) for name in "abcd"]
    training_set = TrainingSet(notes, [("a", "b"), ("c", "d")], builder)
    written = set()
    for step in range(10):
        for output in _outputs(training_set, training_set.batch(step, _sampling(2, 1.0))).values():
            written |= set(output.split(", "))
    assert written == {"travel", "food"}
    shown = training_set.prompts([0]).ids_CL.flatten().tolist()
    assert tokenizer.token_to_id("[UNK]") in shown


@pytest.mark.parametrize("template", [PAPER, SHARED, EOL, BARE])
def test_partners_stand_side_by_side_and_the_state_before_emb_is_named(template):
    training_set = _set(template)
    builder = _builder(training_set)
    batch = training_set.batch(0, _sampling(2, 0.4))
    rows = [row for chunk in batch.chunks for row in chunk.rows]
    assert sorted(rows) == [0, 1, 2, 3]
    for chunk in batch.chunks:
        for ids, position in zip(chunk.ids_CL.tolist(), chunk.before_emb_C.tolist(), strict=True):
            assert ids.index(builder.special.emb) == position + 1
    named = [NOTES[note].id for note in batch.notes]
    for row in (0, 2):
        assert bool(batch.related[row, row + 1])
        assert (named[row], named[row + 1]) in PAIRS


def test_the_state_before_each_output_token_predicts_it():
    for chunk in _set().batch(0, _sampling(3, 0.5)).chunks:
        assert chunk.ids_CL.flatten()[chunk.predict_T + 1].tolist() == chunk.target_T.tolist()


def test_notes_of_like_length_share_a_chunk_and_little_is_padding():
    lengths = [
        (chunk.ids_CL != _builder(training_set).special.pad).sum(dim=1).tolist()
        for training_set in [_set()]
        for chunk in training_set.batch(0, _sampling(3, 0.0, chunk=2)).chunks
    ]
    flat = [length for chunk in lengths for length in chunk]
    assert flat == sorted(flat)
    assert len(lengths) == 3


def test_a_share_of_one_makes_every_note_generate_hashtags():
    training_set = _set()
    tags = {tag for note in NOTES for tag in clean_tags(list(note.hashtags))}
    batch = training_set.batch(0, _sampling(5, 1.0))
    outputs = _outputs(training_set, batch)
    assert len(outputs) == 10
    for row, output in outputs.items():
        assert set(output.split(", ")) <= (tags if NOTES[batch.notes[row]].hashtags else {""})


def test_a_note_without_hashtags_that_is_drawn_for_them_writes_an_empty_list_and_no_category():
    notes = [Note(f"n{i}", "t", "", (), "Travel") for i in range(4)]
    training_set = _set(notes=notes, pairs=[("n0", "n1"), ("n2", "n3")])
    builder = _builder(training_set)

    batch = training_set.batch(0, _sampling(2, 1.0))

    assert list(_outputs(training_set, batch).values()) == [""] * 4
    guidance = builder.guidance("topics", 0)
    for chunk in batch.chunks:
        for ids in chunk.ids_CL.tolist():
            place = ids.index(builder.special.emb) + 1
            assert ids[place : place + len(guidance) + 1] == [*guidance, builder.special.eos]


def test_a_share_of_zero_makes_every_note_with_a_category_generate_it():
    training_set = _set()
    batch = training_set.batch(0, _sampling(5, 0.0))
    assert set(_outputs(training_set, batch).values()) <= {"Travel", "Baking", "Home Decor"}


def test_a_note_without_a_category_keeps_its_hashtags_in_sight_unless_it_is_drawn_for_them():
    notes = [Note(f"n{i}", "t", "", ("alpha", "beta")) for i in range(8)]
    training_set = _set(notes=notes, pairs=[(f"n{i}", f"n{i + 1}") for i in range(0, 8, 2)])
    batch = training_set.batch(0, _sampling(4, 0.25))
    assert len(_outputs(training_set, batch)) == 2, "r of the batch writes hashtags, the rest nothing"


def test_without_a_share_nothing_is_generated():
    batch = _set().batch(0, _sampling(5, None))
    assert batch.num_output_tokens == 0


def test_the_number_and_choice_of_hashtags_is_drawn_anew_each_time():
    training_set = _set(pairs=[("n5", "n6"), ("n1", "n6")])
    sampling = _sampling(2, 1.0)
    drawn = {
        output for step in range(60) for output in _outputs(training_set, training_set.batch(step, sampling)).values()
    }
    of_n6 = {output for output in drawn if set(output.split(", ")) <= {"plants", "repotting", "diy"}}
    assert of_n6 == {
        "plants",
        "repotting",
        "diy",
        "plants, repotting",
        "plants, diy",
        "repotting, diy",
        "plants, repotting, diy",
    }


def test_a_hashtag_that_is_asked_for_never_stands_in_the_prompt():
    notes = [Note(f"n{i}", "t", "", ("alpha", "beta", "gamma")) for i in range(4)]
    training_set = _set(notes=notes, pairs=[("n0", "n1"), ("n2", "n3")])
    builder = _builder(training_set)
    for step in range(30):
        batch = training_set.batch(step, _sampling(2, 1.0))
        outputs = _outputs(training_set, batch)
        for chunk in batch.chunks:
            for row, ids in zip(chunk.rows, chunk.ids_CL.tolist(), strict=True):
                prompt = builder.decode(ids[: ids.index(builder.special.emb)])
                assert not any(tag in prompt for tag in outputs[row].split(", "))


def test_a_note_twice_in_a_batch_and_known_pairs_are_marked():
    training_set = _set(pairs=[("n1", "n6"), ("n2", "n6")])
    batch = training_set.batch(0, _sampling(2))
    # Rows are n1 n6 n2 n6 or n2 n6 n1 n6: every row but the two first notes of the pairs knows the others.
    assert batch.related.tolist() == [
        [True, True, False, True],
        [True, True, True, True],
        [False, True, True, True],
        [True, True, True, True],
    ]


def test_a_pass_uses_every_pair_once_and_the_next_one_in_another_order():
    training_set = _set(pairs=[(a, b) for a in ("n1", "n2", "n3") for b in ("n4", "n5", "n6")])
    passes = [
        [training_set.batch(step, _sampling(3)).notes[row : row + 2] for step in steps for row in (0, 2, 4)]
        for steps in (range(3), range(3, 6))
    ]
    assert sorted(passes[0]) == sorted(passes[1]) == sorted(training_set.pairs)
    assert passes[0] != passes[1]


def test_the_shares_of_two_ranks_are_the_batch_of_one():
    training_set = _set(pairs=[*PAIRS, ("n3", "n6")])

    def examples(*shares: Batch) -> dict[int, list[int]]:
        rows = {}
        for chunk in [chunk for share in shares for chunk in share.chunks]:
            for row, ids, emb in zip(chunk.rows, chunk.ids_CL.tolist(), chunk.before_emb_C.tolist(), strict=True):
                rows[row] = ids[: emb + 2]
        return rows

    sampling = _sampling(4, 0.5)
    alone = training_set.batch(3, sampling)
    shares = [training_set.batch(3, sampling, rank, 2) for rank in (0, 1)]
    assert examples(*shares) == examples(alone)
    assert sum(share.num_output_tokens for share in shares) == alone.num_output_tokens
    assert {share.notes for share in shares} == {alone.notes}
    with pytest.raises(ValueError, match="cannot be shared evenly by 3"):
        training_set.batch(3, sampling, 0, 3)


def test_a_pair_of_an_unknown_note_is_refused():
    with pytest.raises(ValueError, match="'n99'"):
        _set(pairs=[("n1", "n99"), ("n1", "n2")])


def test_one_pair_is_too_few():
    with pytest.raises(ValueError, match="at least two pairs"):
        _set(pairs=[("n1", "n2")])


@pytest.mark.parametrize(("recipe", "least", "most"), [(small(), 40, 80), (paper(), 0, 0)])
def test_a_few_of_ten_prompts_hide_the_known_hashtags_as_those_of_drafts_do_and_none_of_the_papers(recipe, least, most):
    notes = [Note(f"n{i}", "t", "", ("alpha", "beta"), "Travel") for i in range(4)]
    training_set = _set(notes=notes, pairs=[("n0", "n1"), ("n2", "n3")])
    builder = _builder(training_set)
    sampling = Sampling.of(replace(recipe, pairs_per_batch=2, hashtag_share=0.0))
    prompts = [
        builder.decode(ids[: ids.index(builder.special.emb)])
        for step in range(50)
        for chunk in training_set.batch(step, sampling).chunks
        for ids in chunk.ids_CL.tolist()
    ]
    hidden = sum("alpha" not in prompt for prompt in prompts)
    assert len(prompts) == 200
    assert least <= hidden <= most
    assert all(("alpha" in prompt) == ("beta" in prompt) for prompt in prompts)


def test_the_papers_prompts_show_the_hashtags_to_the_category_alone_and_name_their_number():
    """Section 4.2, word by word."""
    training_set = _set(PAPER, pairs=[("n1", "n3"), ("n2", "n4"), ("n3", "n6"), ("n1", "n6"), ("n2", "n6")])
    builder = _builder(training_set)
    batch = training_set.batch(0, Sampling.of(replace(paper(), pairs_per_batch=5)))

    outputs = _outputs(training_set, batch)
    tasks = Counter()
    for chunk in batch.chunks:
        for row, ids in zip(chunk.rows, chunk.ids_CL.tolist(), strict=True):
            note, text = NOTES[batch.notes[row]], builder.decode(ids)
            topics = "topics of the note." in text
            tasks[topics] += 1
            assert ('"topic":' in text) is not topics
            if topics:
                j = len(outputs[row].split(", "))
                assert f"generate {j} topics of the note." in text
                assert f"The {j} topics are:" in text
            else:
                assert "and generate the category of the note." in text
                assert outputs[row] == note.category
    assert tasks == {True: 4, False: 6}  # r = 40% of ten notes


def test_without_csft_there_is_no_output_and_with_alpha_0_there_is():
    recipe = replace(paper(), pairs_per_batch=5, alpha=0.0)
    training_set = _set(PAPER)

    assert training_set.batch(0, Sampling.of(recipe)).num_output_tokens > 0
    for other in (replace(recipe, generative=False), replace(recipe, architecture="encoder")):
        assert training_set.batch(0, Sampling.of(other)).num_output_tokens == 0


def test_every_combination_of_categories_gives_as_many_pairs():
    categories = ["tea"] * 20 + ["cats"] * 3 + [None]
    pairs = [(a, b) for a in range(24) for b in range(24) if a != b]

    kept = balanced(pairs, categories, 5, seed=0)

    assert kept == [pair for pair in pairs if pair in set(kept)], "in order"
    found = Counter(frozenset(categories[note] for note in pair) for pair in kept)
    assert set(found.values()) == {5}
    assert len(found) == 5  # a single note without a category makes no pair of two such
    assert balanced(pairs, categories, 5, seed=1) != kept
    assert balanced(pairs, categories, 0, seed=0) == pairs


def test_a_related_note_that_balancing_left_out_is_still_no_negative():
    builder = _builder(_set())
    many = [(a, b) for a in ("n1", "n2", "n3") for b in ("n4", "n5", "n6")]
    training_set = TrainingSet([replace(note, category="Tea") for note in NOTES], many, builder, per_combination=2)

    assert len(training_set.pairs) == 2
    batch = training_set.batch(0, _sampling(2))
    names = [NOTES[note].id for note in batch.notes]
    for row, left in enumerate(names):
        for column, right in enumerate(names):
            known = left == right or (left, right) in many or (right, left) in many
            assert bool(batch.related[row, column]) is known


def test_pairs_without_any_category_cannot_be_balanced():
    builder = _builder(_set())
    with pytest.raises(ValueError, match=r"no note of the pairs has a category.*pairs_per_combination"):
        TrainingSet([replace(note, category=None) for note in NOTES], PAIRS, builder, per_combination=2)
