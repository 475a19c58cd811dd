"""The models of a study, read from its YAML and checked."""

import pytest

from speechbrain_merge.search import GreedySearch
from speechbrain_merge.study.continual import Continual
from speechbrain_merge.study.graph import trainings_behind, with_ancestors
from speechbrain_merge.study.plan import plan_models as plan_all
from speechbrain_merge.study.sequences import sequence_of
from speechbrain_merge.training import RunSampler


def plan_models(models, domains, **more):
    """A plan with one usual training."""
    return plan_all(models, domains, ["expert"], **more)


def described(plan):
    """What a plan says of each model, in short."""
    return {
        model.name: (
            getattr(model, "start", None),
            getattr(model, "domains", ()),
            getattr(model, "members", ()),
        )
        for model in plan
    }


SMALL = {
    "{domain}": {"train": "{domain}"},
    "aode": {"merge": "average", "of": "{each}"},
}


def test_names_stand_for_all_domains_or_for_this_one():
    models = {
        **SMALL,
        "second-{domain}": {"train": "{domain}", "from": "aode"},
        "heavy-{domain}": {
            "merge": "average",
            "of": ["second-{each}", "original"],
            "weights": {"second-{domain}": "4/8"},
        },
        "all": {"train": "{each}"},
    }
    plan = plan_models(models, ["a", "b"])
    assert described(plan) == {
        "original": (None, (), ()),
        "a": ("original", ("a",), ()),
        "b": ("original", ("b",), ()),
        "aode": (None, (), ("a", "b")),
        "second-a": ("aode", ("a",), ()),
        "second-b": ("aode", ("b",), ()),
        "heavy-a": (None, (), ("second-a", "second-b", "original")),
        "heavy-b": (None, (), ("second-a", "second-b", "original")),
        "all": ("original", ("a", "b"), ()),
    }
    assert plan[6].method.weights == [0.5, 1.0, 1.0]
    assert plan[7].method.weights == [1.0, 0.5, 1.0]
    by_name = {model.name: model for model in plan}
    assert trainings_behind("heavy-a", by_name) == [
        "a",
        "b",
        "second-a",
        "second-b",
    ]


def test_sequences_share_what_is_the_same_training():
    models = {
        **SMALL,
        "turn": {"in_turn": "{each}"},
        "back": {"in_turn": "{each}", "reverse": True},
        "other": {"in_turn": "{each}", "with": {"lr": 1}},
    }
    plan = plan_models(models, ["a", "b", "c"])
    by_name = {model.name: model for model in plan}
    assert by_name["turn"].stages == ("a", "turn-2", "turn")
    assert by_name["back"].stages == ("c", "back-2", "back")
    assert by_name["other"].stages == ("other-1", "other-2", "other")
    assert [by_name[n].start for n in by_name["turn"].stages] == [
        "original",
        "a",
        "turn-2",
    ]
    assert by_name["back"].domains == ("a",)
    assert not by_name["turn-2"].row and by_name["turn"].row
    some = with_ancestors(plan, ["back"])
    assert [(m.name, m.row) for m in some] == [
        ("original", True),
        ("c", False),
        ("back-2", False),
        ("back", True),
    ]
    with pytest.raises(
        ValueError, match="`only`: there is no model 'bak'.* 'back'"
    ):
        with_ancestors(plan, ["bak"])


@pytest.mark.parametrize(
    "models, message",
    [
        ({"m": {"train": "a", "merge": "average"}}, "found train and merge"),
        ({"m": {}}, "'m': expected one of train"),
        ({"m": "average"}, "expected a mapping"),
        ({"m": {"train": "a", "form": "b"}}, "unknown keys form"),
        ({"m": {"train": "a", "from": "aod"}}, "did you mean 'aode'"),
        ({"m": {"merge": "average", "of": ["{each}", "c"]}}, "no model 'c'"),
        ({"m": {"merge": "average"}}, "`of` is missing"),
        ({"m": {"merge": "average", "of": ["a", "a"]}}, "twice"),
        (
            {"m": {"merge": "average", "of": "{each}", "weights": [1]}},
            "1 weights for 2 members",
        ),
        (
            {"m": {"merge": "average", "of": "{each}", "weights": {"c": 1}}},
            "`weights` has c, and the members are a, b",
        ),
        ({"m": {"merge": "slerp", "of": ["a"]}}, "slerp"),
        (
            {
                "o": {"oracle": "{domain}"},
                "m": {"merge": "average", "of": ["o", "a"]},
            },
            r"'o' \(by_domain\) has no weights",
        ),
        (
            {
                "o": {"oracle": "{domain}"},
                "m": {"train": "a", "from": "o"},
            },
            r"`from`: 'o' \(by_domain\) has no weights",
        ),
        ({"m m": {"train": "a"}}, "the name of a folder"),
        ({"{domain}ode": {"train": "{domain}"}}, "two models 'aode'"),
        ({"m": {"train": "a", "title": "aode"}}, "same title"),
    ],
)
def test_a_specification_that_is_none_is_named(models, message):
    with pytest.raises(ValueError, match=message):
        plan_models({**SMALL, **models}, ["a", "b"])


def test_members_of_different_origins_are_refused_unless_told():
    mixed = {
        **SMALL,
        "next": {"train": "b", "from": "aode"},
        "m": {"merge": "average", "of": ["a", "next", "original"]},
    }
    with pytest.raises(ValueError, match="a from original, next from aode"):
        plan_models(mixed, ["a", "b"])
    mixed["m"]["same_base"] = False
    assert plan_models(mixed, ["a", "b"])[-1].members[1] == "next"


def test_draws_make_a_model_each():
    draws = list(RunSampler({"lr": [1e-6, 2e-6]}, runs=2, seed=3))
    models = {
        "{domain}-{draw}": {"train": "{domain}", "with": {"epochs": "{seed}"}},
        "mact": {
            "merge": "average",
            "of": {"runs": "{each}-{draws}", "per_run": "best"},
            "search": GreedySearch(),
        },
    }
    plan = plan_models(models, ["a", "b"], seed=7, draws=draws)
    names = ["a-run-01", "a-run-02", "b-run-01", "b-run-02"]
    assert [node.name for node in plan] == ["original", *names, "mact"]
    assert plan[1].settings["lr"] == draws[0]["lr"] != draws[1]["lr"]
    assert plan[1].settings["seed"] == draws[0]["seed"]
    assert plan[1].settings["epochs"] == 7
    assert plan[-1].members == tuple(names) and plan[-1].from_runs
    assert plan[-1].chosen == {"per_run": "best"}
    with pytest.raises(ValueError, match="has no `draws`"):
        plan_models(models, ["a", "b"])


def test_the_original_is_there_only_where_it_is_needed():
    models = {"a": {"train": "a", "from": "scratch"}}
    assert [node.name for node in plan_models(models, ["a"])] == ["a"]
    models["original"] = {"title": "generalist"}
    plan = plan_models(models, ["a"])
    assert [node.title for node in plan] == ["generalist", "a"]


@pytest.mark.parametrize(
    "models, message",
    [
        ({"m": {"train": "a", "with": {"x": "{domain}"}}}, "{domain} in"),
        ({"m": {"train": "a", "tests": "c"}}, "`tests` names c"),
        ({"m": {"train": "a", "row": "no"}}, "`row` is True or False"),
        ({"m": {"train": "a", "training": "b"}}, "no training 'b'"),
        ({"m": {"train": "a", "with": [1]}}, "`with` is"),
        ({"m": {"merge": "avrage", "of": "{each}"}}, "`merge`"),
        ({"m": {"merge": {"ties": {"densty": 1}}, "of": "{each}"}}, "densty"),
        ({"m": {"merge": {"a": {}, "b": {}}, "of": "{each}"}}, "one name"),
        ({"m": {"merge": "average", "of": {"runs": "aode"}}}, "not trained"),
        ({"m": {"merge": "average", "of": {"last": 3}}}, "expected `runs`"),
        ({"m": {"combine": "mean", "of": "{each}"}}, "expected one of oracle"),
        ({"m": {"combine": "oracle", "of": ["a"]}}, "two models or more"),
        ({"m": {"align": "a"}}, "`to` is missing"),
        ({"m": {"by_domain": "x-{domain}"}}, "no model 'x-a'"),
        ({"m": {"similarity": "f", "of": "a", "domain": "a"}}, "by `!name:`"),
        ({"m": {"merge": "average", "of": "{each}", "search": 1}}, "`search`"),
    ],
)
def test_every_key_is_checked_and_named(models, message):
    with pytest.raises(ValueError, match=message):
        plan_models({**SMALL, **models}, ["a", "b"], tests=["a", "b"])


def test_merges_in_turn_start_each_training_from_the_last_merge():
    models = {
        **SMALL,
        "turn": {"in_turn": "{each}", "merge_each": "average"},
        "heavy": {
            "in_turn": "{each}",
            "merge_each": {"average": {"weights": [3, 1]}},
        },
    }
    plan = plan_models(models, ["a", "b", "c"])
    by_name = {model.name: model for model in plan}
    assert {
        name: (by_name[name].start, by_name[name].domains)
        for name in ("turn-expert-2", "turn-expert-3")
    } == {
        "turn-expert-2": ("turn-1", ("b",)),
        "turn-expert-3": ("turn-2", ("c",)),
    }
    # the first training is that of an expert, and made once
    assert by_name["turn-1"].members == ("original", "a")
    assert by_name["turn-2"].members == ("turn-1", "turn-expert-2")
    assert by_name["turn"].members == ("turn-2", "turn-expert-3")
    assert by_name["turn"].stages == ("turn-1", "turn-2", "turn")
    assert [by_name[n].row for n in by_name["turn"].stages] == [0, 0, 1]
    assert by_name["heavy"].method.weights == [3.0, 1.0]
    sequence = sequence_of(by_name["turn"], by_name)
    assert sequence.start == "original"
    assert sequence.domains == ("a", "b", "c")
    some = with_ancestors(plan, ["turn"])
    assert "turn-2" in [model.name for model in some]


def test_a_merge_by_stages_has_the_first_experts():
    models = {
        **SMALL,
        "all": {
            "merge": "average",
            "of": ["{each}", "original"],
            "weights": {"b": 2},
            "stages": True,
        },
    }
    by_name = {
        model.name: model for model in plan_models(models, ["a", "b", "c"])
    }
    assert by_name["all-1"].members == ("a", "original")
    assert by_name["all-2"].members == ("a", "b", "original")
    assert by_name["all"].members == ("a", "b", "c", "original")
    assert by_name["all-1"].method.weights == [1.0, 1.0]
    assert by_name["all-2"].method.weights == [1.0, 2.0, 1.0]
    assert by_name["all"].stages == ("all-1", "all-2", "all")
    assert sequence_of(by_name["all"], by_name).domains == ("a", "b", "c")


@pytest.mark.parametrize(
    "entry, message",
    [
        ({"in_turn": "{each}", "merge_each": "slurp"}, "`merge_each`: .*slurp"),
        (
            {"merge": "average", "of": {"runs": "{each}"}, "stages": True},
            "`stages` needs models",
        ),
        (
            {"merge": "average", "of": "aode", "stages": True},
            "found none",
        ),
        (
            {
                "merge": "average",
                "of": "{each}",
                "stages": True,
                "weights": [1, 1],
            },
            "`weights` must name",
        ),
    ],
)
def test_wrong_sequences_are_told(entry, message):
    with pytest.raises(ValueError, match=message):
        plan_models({**SMALL, "m": entry}, ["a", "b"])


@pytest.mark.parametrize(
    "given, message",
    [
        ({"base": ["a"]}, "`base` is .*'a'.* among en"),
        ({"base": []}, "expected tests of the study"),
        ({"base": ["en"], "joint": "jiont"}, "did you mean 'joint'"),
        ({"base": ["en"], "single": "{domain}s"}, "no model 'as'"),
        ({"base": ["en"], "single": {"a": 1.0}}, "no rate for b"),
    ],
)
def test_wrong_references_of_continual_learning_are_told(given, message):
    names, tests = ["a", "b", "joint"], ["en", "a", "b"]
    with pytest.raises(ValueError, match=message):
        Continual(**given).check(names, ["a", "b"], tests)
