"""Models from scratch in a study: what may be merged, and what counts."""

import pytest

from speechbrain_merge.study.graph import trainings_behind, with_ancestors
from speechbrain_merge.study.plan import plan_models

GENERALIST = {
    "start": {"train": ["a", "b"], "from": "scratch", "group": "generalist"},
    "{domain}": {"train": "{domain}", "from": "start"},
    "aode": {"merge": "average", "of": "{each}"},
    "second-{domain}": {"train": "{domain}", "from": "aode"},
}


def planned(models):
    """The nodes of a study of two domains, by name."""
    nodes = plan_models(models, ["a", "b"], ["expert"])
    return {node.name: node for node in nodes}


@pytest.mark.parametrize("members", [["{each}"], ["second-{each}"]])
def test_a_generalist_from_scratch_is_a_member_as_the_original_is(members):
    more = {"with-start": {"merge": "average", "of": [*members, "start"]}}
    nodes = planned({**GENERALIST, **more})
    assert nodes["with-start"].members[-1] == "start"
    assert "original" not in nodes


def test_models_from_different_starts_are_not_merged_by_mistake():
    models = {
        "one": {"train": "a", "from": "scratch"},
        "two": {"train": "a", "from": "scratch", "seed_offset": 1},
        "tuned": {"train": "b", "from": "one"},
        "from-two": {"train": "b", "from": "two"},
    }
    # a model and what was fine-tuned from it have one start
    planned({**models, "m": {"merge": "average", "of": ["one", "tuned"]}})
    for members in (["one", "two"], ["tuned", "from-two"], ["two", "tuned"]):
        merge = {"merge": "average", "of": members}
        with pytest.raises(ValueError, match="'m'.*different models"):
            planned({**models, "m": merge})
        planned({**models, "m": {**merge, "same_base": False}})


def test_what_all_models_have_in_common_does_not_count():
    nodes = planned(GENERALIST)
    assert trainings_behind("start", nodes) == []
    assert trainings_behind("aode", nodes) == ["a", "b"]
    assert trainings_behind("second-a", nodes) == ["a", "b", "second-a"]


def test_the_generalist_stays_a_row_where_only_others_are_asked_for():
    some = with_ancestors(list(planned(GENERALIST).values()), ["aode"])
    assert {node.name: node.row for node in some} == {
        "start": True,
        "a": False,
        "b": False,
        "aode": True,
    }
