"""Preparation of Common Voice and of the Speech Accessibility Project."""

import csv
import importlib
import json

import pytest
import soundfile
from listed_recipes import ROOT
from tiny_domains import recipe_module

COMMON_VOICE = ROOT / "recipes/CommonVoice"
SAP = ROOT / "recipes/SAP"


@pytest.fixture(scope="module")
def common_voice(tmp_path_factory):
    """A release with Spanish in the new form, and French in the old one."""
    corpus = importlib.import_module("corpora.commonvoice")
    folder = tmp_path_factory.mktemp("cv-corpus")
    corpus.write_language(folder, "es", corpus.SPANISH, 2)
    corpus.write_language(folder, "fr", ["france", "quebec"], 2, old=True)
    return folder


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_accents_are_found_in_new_and_old_releases(common_voice, tmp_path):
    definitions = {
        "mexico": {"language": "es", "accents": ["México", "mexicano"]},
        "chile": {"language": "es", "accents": ["chileno"]},
        "es": {"language": "es"},
        "quebec": {"language": "fr", "accents": ["quebec"], "code": "fr"},
    }
    with recipe_module(COMMON_VOICE, "common_voice_domains_prepare") as module:
        module.prepare_common_voice_domains(
            str(common_voice),
            str(tmp_path),
            definitions,
            train_domains=["mexico", "chile"],
            valid_domains=["quebec"],
            test_domains=["es"],
        )
    names = sorted(path.name for path in tmp_path.glob("*.csv"))
    assert names == [
        "chile_train.csv",
        "es_test.csv",
        "mexico_train.csv",
        "quebec_valid.csv",
    ]
    mexico = rows_of(tmp_path / "mexico_train.csv")
    # the Caribbean names Mexico too, and is not of it
    assert len(mexico) == 6 and len({row["spk_id"] for row in mexico}) == 1
    assert len(rows_of(tmp_path / "es_test.csv")) == 8
    [first, _] = quebec = rows_of(tmp_path / "quebec_valid.csv")
    assert {row["language"] for row in quebec} == {"fr"}
    # a name without its ending, and a duration that is read from the clip
    clip = first["wav"].replace("$data_root", str(common_voice))
    assert clip.endswith(".mp3")
    info = soundfile.info(clip)
    assert info.format == "MP3" and info.samplerate == 48000
    assert float(first["duration"]) == info.frames / info.samplerate
    assert first["wrd"].startswith('"') and first["wrd"].endswith(".")


def test_what_is_drawn_is_drawn_again(common_voice, tmp_path):
    definitions = {"es": {"language": "es"}}
    found = []
    with recipe_module(COMMON_VOICE, "common_voice_domains_prepare") as module:
        for name, seed in (("a", 1), ("b", 1), ("c", 2)):
            module.prepare_common_voice_domains(
                str(common_voice),
                str(tmp_path / name),
                definitions,
                train_domains=["es"],
                test_domains=["es"],
                train_hours=2 / 3600,
                most_utterances=3,
                seed=seed,
            )
            train = rows_of(tmp_path / name / "es_train.csv")
            test = rows_of(tmp_path / name / "es_test.csv")
            assert 2 - 0.6 < sum(float(r["duration"]) for r in train) <= 2
            assert len(test) == 3
            found.append([row["ID"] for row in train + test])
    assert found[0] == found[1] != found[2]


def test_what_common_voice_manifests_are_made_from_counts(
    common_voice, tmp_path
):
    tables = tmp_path / "corpus" / "es"
    tables.mkdir(parents=True)
    (tables / "clips").symlink_to(common_voice / "es" / "clips")
    text = (common_voice / "es" / "test.tsv").read_text(encoding="utf-8")
    (tables / "test.tsv").write_text(text, encoding="utf-8")
    written = tmp_path / "csv" / "es_test.csv"

    def prepare(**settings):
        with recipe_module(COMMON_VOICE, "common_voice_domains_prepare") as m:
            m.prepare_common_voice_domains(
                str(tables.parent),
                str(written.parent),
                {"es": {"language": "es", **settings.pop("es", {})}},
                test_domains=["es"],
                **settings,
            )
        return written.stat().st_mtime_ns, rows_of(written)

    first = prepare()
    assert prepare() == first
    assert len(prepare(most_utterances=2)[1]) == 2
    assert prepare()[1] == first[1]
    accented = prepare(es={"accents": ["chileno"]})[1]
    assert 0 < len(accented) < len(first[1])
    lines = text.splitlines(keepends=True)
    with open(tables / "test.tsv", "w", encoding="utf-8") as file:
        file.writelines(lines[:-1])
    assert len(prepare()[1]) == len(first[1]) - 1


@pytest.mark.parametrize(
    ("definition", "error", "message"),
    [
        (
            {"language": "pt"},
            FileNotFoundError,
            "train.tsv. .*commonvoice.mozilla.org",
        ),
        (
            {"language": "es", "accents": ["Venezuela oriental"]},
            ValueError,
            r"'one' has no utterance in .*train.tsv: none has one of "
            r"\['Venezuela oriental'\]",
        ),
        ({"accents": ["x"]}, ValueError, "'one' is .*expected `language`"),
        (None, ValueError, "no domain 'one'; it has two"),
    ],
)
def test_what_common_voice_lacks_is_told(
    common_voice, tmp_path, definition, error, message
):
    definitions = {"two": {}}
    if definition is not None:
        definitions["one"] = definition
    with recipe_module(COMMON_VOICE, "common_voice_domains_prepare") as module:
        with pytest.raises(error, match=message):
            module.prepare_common_voice_domains(
                str(common_voice), str(tmp_path), definitions, ["one"]
            )
    assert not list(tmp_path.iterdir())


def test_a_clip_that_is_not_there_is_named(common_voice, tmp_path):
    folder = tmp_path / "cv"
    (folder / "fr").mkdir(parents=True)
    text = (common_voice / "fr/train.tsv").read_text(encoding="utf-8")
    (folder / "fr/train.tsv").write_text(text, encoding="utf-8")
    with recipe_module(COMMON_VOICE, "common_voice_domains_prepare") as module:
        with pytest.raises(FileNotFoundError, match="12 clips .*fr_0.mp3"):
            module.prepare_common_voice_domains(
                str(folder),
                str(tmp_path / "csv"),
                {"fr": {"language": "fr"}},
                ["fr"],
            )


@pytest.fixture(scope="module")
def sap(tmp_path_factory):
    """A corpus with a recording of more than 30 s in Dev."""
    corpus = importlib.import_module("corpora.sap")
    folder = tmp_path_factory.mktemp("SAP")
    contributors = {"a1b2": "ALS", "c3d4": "Parkinson's Disease"}
    corpus.write_split(folder / "Train", contributors, each=2)
    corpus.write_split(folder / "Dev", {"e5f6": "ALS"}, each=7, longest=31.0)
    return folder


def test_a_manifest_of_sap(sap, tmp_path):
    with recipe_module(SAP, "sap_prepare") as module:
        module.prepare_sap(str(sap), str(tmp_path), select_fraction=0.15)
    train, dev, select = (
        rows_of(tmp_path / f"{name}.csv") for name in ("Train", "Dev", "select")
    )
    assert len(train) == 12 and len(dev) == 21
    assert {row["etiology"] for row in train} == {"ALS", "Parkinson's Disease"}
    kinds = {row["category"]: row for row in dev}
    assert list(kinds) == ["commands", "sentences", "spontaneous"]
    assert kinds["commands"]["wrd"] == kinds["commands"]["fluent"]
    first, second = kinds["sentences"]["fluent"].rstrip(".").split()
    said = f"{first} {first}- {first} {second}."
    assert kinds["sentences"]["wrd"] == said
    assert kinds["spontaneous"]["fluent"].count(" ") == 0
    # 15 % of 21 at random, and in any case the one of more than 30 s
    assert 3 <= len(select) <= 4 and select[0]["duration"] == "31.0"
    assert {row["ID"] for row in select} < {row["ID"] for row in dev}
    path = dev[0]["wav"].replace("$data_root", str(sap))
    assert soundfile.info(path).duration == 31.0


def test_splits_in_lower_case_and_other_files(tmp_path):
    """Names as on the challenge's servers; lists that are no contributors."""
    corpus = importlib.import_module("corpora.sap")
    corpus.write_split(tmp_path / "SAP/dev/part-1", {"e5f6": ""}, each=1)
    home = tmp_path / "SAP/dev/part-1/e5f6"
    (home / "list.json").write_text("[1, 2]")
    contributor = json.loads((home / "e5f6.json").read_text())
    contributor["Files"][0]["Prompt"]["Transcript"] = "[silence]"
    contributor["Files"][1]["Prompt"]["Transcript"] = "(um)"
    contributor["Files"].append(
        {**contributor["Files"][2], "Filename": "e5f6_99_9999.wav"}
    )
    (home / "e5f6.json").write_text(json.dumps(contributor))
    with recipe_module(SAP, "sap_prepare") as module:
        module.prepare_sap(
            str(tmp_path / "SAP"), str(tmp_path / "csv"), splits=["Dev"]
        )
    rows = rows_of(tmp_path / "csv/Dev.csv")
    # neither silence nor a recording that is not there
    assert [row["ID"] for row in rows] == ["e5f6_10_1001", "e5f6_10_1002"]
    assert (rows[0]["wrd"], rows[0]["fluent"]) == ("um", "um")


def test_who_lacks_sap_is_told_where_it_is(tmp_path):
    with recipe_module(SAP, "sap_prepare") as module:
        with pytest.raises(
            FileNotFoundError, match="no folder .*Train.*beckman.illinois.edu"
        ):
            module.prepare_sap(str(tmp_path), str(tmp_path / "csv"))
        (tmp_path / "Train").mkdir()
        with pytest.raises(ValueError, match="Train has no utterances"):
            module.prepare_sap(str(tmp_path), str(tmp_path / "csv"))
    assert not (tmp_path / "csv").exists()


def test_what_sap_manifests_are_made_from_counts(tmp_path):
    corpus = importlib.import_module("corpora.sap")
    corpus.write_split(tmp_path / "SAP/Train", {"e5f6": "ALS"}, each=2)
    contributor = tmp_path / "SAP/Train/e5f6/e5f6.json"
    written = tmp_path / "csv/Train.csv"

    def prepare(**settings):
        with recipe_module(SAP, "sap_prepare") as module:
            module.prepare_sap(
                str(tmp_path / "SAP"),
                str(written.parent),
                ["Train"],
                "Train",
                **settings,
            )
        drawn = rows_of(written.with_name("select.csv"))
        return written.stat().st_mtime_ns, len(drawn)

    first = prepare(select_fraction=0.2)
    assert prepare(select_fraction=0.2) == first
    # another selection of the same utterances
    wider = prepare(select_fraction=1.0)
    assert wider[0] == first[0] and wider[1] > first[1]
    text = json.loads(contributor.read_text())
    text["Files"].pop()
    contributor.write_text(json.dumps(text))
    fewer = prepare(select_fraction=1.0)
    assert fewer[0] > first[0] and fewer[1] == wider[1] - 1
    corpus.write_split(tmp_path / "SAP/Train", {"a1b2": "ALS"}, each=2)
    assert prepare(select_fraction=1.0)[1] > wider[1]
