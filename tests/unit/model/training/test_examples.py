import pytest
from support.tiny import NOTES, tiny_tokenizer

from model.network.checkpoint import special_ids
from model.note import Note
from model.text.hashtags import clean_tags
from model.text.prompt import BARE, EOL, PAPER, SHARED, PromptBuilder
from model.training.examples import Batch, Sampling, TrainingSet

PAIRS = [("n1", "n3"), ("n2", "n4"), ("n5", "n6"), ("n1", "n6"), ("n2", "n6")]


def _set(template=SHARED, notes=NOTES, pairs=PAIRS) -> TrainingSet:
    tokenizer = tiny_tokenizer()
    special = special_ids(tokenizer, "<s>", "</s>", None)
    return TrainingSet(notes, pairs, PromptBuilder(tokenizer, special, template, 20, 80))


def _builder(training_set: TrainingSet) -> PromptBuilder:
    return training_set._builder


def _sampling(pairs: int, share: float | None = 0.0, chunk: int = 3, seed: int = 0) -> Sampling:
    return Sampling(pairs, share, chunk, seed)


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


def test_a_share_of_one_makes_every_note_with_hashtags_generate_them():
    training_set = _set()
    tags = {tag for note in NOTES for tag in clean_tags(list(note.hashtags))}
    batch = training_set.batch(0, _sampling(5, 1.0))
    outputs = _outputs(training_set, batch)
    assert len(outputs) >= 8
    for output in outputs.values():
        assert set(output.split(", ")) <= tags


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


def test_a_few_of_ten_prompts_hide_the_known_hashtags_as_those_of_drafts_do():
    notes = [Note(f"n{i}", "t", "", ("alpha", "beta"), "Travel") for i in range(4)]
    training_set = _set(notes=notes, pairs=[("n0", "n1"), ("n2", "n3")])
    builder = _builder(training_set)
    prompts = [
        builder.decode(ids[: ids.index(builder.special.emb)])
        for step in range(50)
        for chunk in training_set.batch(step, _sampling(2, 0.0)).chunks
        for ids in chunk.ids_CL.tolist()
    ]
    hidden = sum("alpha" not in prompt for prompt in prompts)
    assert len(prompts) == 200
    assert 40 <= hidden <= 80
    assert all(("alpha" in prompt) == ("beta" in prompt) for prompt in prompts)
