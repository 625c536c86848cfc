import pytest

from model.recipes import changed, small


def test_settings_change_fields_of_every_kind():
    recipe = changed(small(), ["lora_rank=8", "recompute=true", "alpha=0.01", "teacher=minilm", "steps=7"])
    assert (recipe.lora_rank, recipe.recompute, recipe.alpha, recipe.steps) == (8, True, 0.01, 7)
    assert recipe.teacher == "minilm"
    assert recipe.template == small().template


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("lora=8", "'lora=8' is no setting; write FIELD=VALUE with one of alpha"),
        ("lora_rank", "is no setting"),
        ("lora_rank=many", "'lora_rank=many': input should be a valid integer"),
        ("recompute=3", "'recompute=3': input should be a valid boolean"),
        ("architecture=mixture", "input should be 'decoder' or 'encoder'"),
    ],
)
def test_a_setting_that_cannot_be_names_itself(setting, message):
    with pytest.raises(ValueError, match=message):
        changed(small(), [setting])
