import random

import pytest
from support.tiny import NOTES, tiny_tokenizer

from model.checkpoint import special_ids
from model.examples import TrainingSet
from model.note import Note
from model.prompt import PAPER, SHARED, PromptBuilder
from model.tags import clean_tags

PAIRS = [("n1", "n3"), ("n2", "n4"), ("n5", "n6"), ("n1", "n6"), ("n2", "n6")]


def _set(template=SHARED, notes=NOTES, pairs=PAIRS) -> TrainingSet:
    tokenizer = tiny_tokenizer()
    special = special_ids(tokenizer, "<s>", "</s>", None)
    return TrainingSet(notes, pairs, PromptBuilder(tokenizer, special, template, 20, 80))


def _builder(training_set: TrainingSet) -> PromptBuilder:
    return training_set._builder


def _outputs(training_set: TrainingSet, batch) -> list[str]:
    """The outputs of a batch, in order, found by splitting the targets at the end token."""
    outputs, current = [], []
    for token in batch.target_T.tolist():
        if token == _builder(training_set).special.eos:
            outputs.append(_builder(training_set).decode(current))
            current = []
        else:
            current.append(token)
    assert not current, "every output ends in the end token"
    return outputs


@pytest.mark.parametrize("template", [PAPER, SHARED])
def test_partners_stand_side_by_side_and_the_state_before_emb_is_named(template):
    training_set = _set(template)
    builder = _builder(training_set)
    batch = next(training_set.batches(2, 0.4, random.Random(0)))
    assert batch.ids_NL.shape[0] == 4
    for ids, position in zip(batch.ids_NL.tolist(), batch.before_emb_N.tolist(), strict=True):
        assert ids.index(builder.special.emb) == position + 1
    for row in (0, 2):
        assert bool(batch.related_NN[row, row + 1])


def test_the_state_before_each_output_token_predicts_it():
    training_set = _set()
    batch = next(training_set.batches(3, 0.5, random.Random(0)))
    flat = batch.ids_NL.flatten()
    assert flat[batch.predict_T + 1].tolist() == batch.target_T.tolist()


def test_a_share_of_one_makes_every_note_with_hashtags_generate_them():
    training_set = _set()
    batch = next(training_set.batches(5, 1.0, random.Random(0)))
    tags = {tag for note in NOTES for tag in clean_tags(list(note.hashtags))}
    for output in _outputs(training_set, batch):
        assert set(output.split(", ")) <= tags


def test_a_share_of_zero_makes_every_note_with_a_category_generate_it():
    training_set = _set()
    batch = next(training_set.batches(5, 0.0, random.Random(0)))
    assert set(_outputs(training_set, batch)) <= {"Travel", "Baking", "Home Decor"}


def test_the_number_and_choice_of_hashtags_is_drawn_anew_each_time():
    training_set = _set(pairs=[("n5", "n6"), ("n1", "n6")])
    batches = training_set.batches(2, 1.0, random.Random(0))
    drawn = {output for _ in range(60) for output in _outputs(training_set, next(batches)) if output != "Travel"}
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
    batches = training_set.batches(2, 1.0, random.Random(0))
    for _ in range(30):
        batch = next(batches)
        for ids, output in zip(batch.ids_NL.tolist(), _outputs(training_set, batch), strict=True):
            prompt = builder.decode(ids[: ids.index(builder.special.emb)])
            assert not any(tag in prompt for tag in output.split(", "))


def test_a_note_twice_in_a_batch_and_known_pairs_are_marked():
    training_set = _set(pairs=[("n1", "n6"), ("n2", "n6")])
    batch = next(training_set.batches(2, 0.0, random.Random(0)))
    # Rows are n1 n6 n2 n6 or n2 n6 n1 n6: every row but the two first notes of the pairs knows the others.
    assert batch.related_NN.tolist() == [
        [True, True, False, True],
        [True, True, True, True],
        [False, True, True, True],
        [True, True, True, True],
    ]


def test_a_pair_of_an_unknown_note_is_refused():
    with pytest.raises(ValueError, match="'n99'"):
        _set(pairs=[("n1", "n99"), ("n1", "n2")])


def test_one_pair_is_too_few():
    with pytest.raises(ValueError, match="at least two pairs"):
        _set(pairs=[("n1", "n2")])
