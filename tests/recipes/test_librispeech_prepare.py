"""LibriSpeech is read as it lies on a disk, and whoever lacks it is told."""

import csv
import runpy
import shutil
from pathlib import Path

import pytest
import soundfile
from corpora.librispeech import write_corpus

RECIPES = Path(__file__).resolve().parents[2] / "recipes/LibriSpeech/ASR"
SPLITS = {"train-clean-100": 4, "dev-clean": 2, "test-clean": 2}


@pytest.fixture
def prepare():
    """The recipe's function, taken from its file."""
    file = runpy.run_path(str(RECIPES / "librispeech_prepare.py"))
    return file["prepare_librispeech"]


@pytest.fixture
def corpus(tmp_path):
    """The folder LibriSpeech."""
    write_corpus(tmp_path / "LibriSpeech", SPLITS)
    return tmp_path / "LibriSpeech"


def call(prepare, corpus, folder, **more):
    """Prepares all splits of the miniature, as a recipe does."""
    prepare(
        data_folder=str(corpus),
        save_folder=str(folder),
        tr_splits=["train-clean-100"],
        dev_splits=["dev-clean"],
        te_splits=["test-clean"],
        **more,
    )


def rows(path):
    """The rows of a CSV."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_utterance_with_its_words_and_duration(prepare, corpus, tmp_path):
    call(prepare, corpus, tmp_path / "csv")
    assert {path.name for path in (tmp_path / "csv").iterdir()} == {
        f"{split}.csv" for split in SPLITS
    }
    found = rows(tmp_path / "csv/train-clean-100.csv")
    assert list(found[0]) == ["ID", "duration", "wav", "spk_id", "wrd"]
    assert [row["ID"] for row in found] == [
        "1000-10000-0000",
        "1000-10000-0001",
        "1001-10001-0000",
        "1001-10001-0001",
    ]
    for row in found:
        assert row["wav"].startswith("$data_root/train-clean-100/")
        audio = Path(row["wav"].replace("$data_root", str(corpus)))
        assert float(row["duration"]) == soundfile.info(audio).duration
        assert row["spk_id"] == row["ID"][:-5]
        lines = audio.parent.glob("*.trans.txt").__next__().read_text()
        assert f"{row['ID']} {row['wrd']}\n" in lines


def test_what_is_there_is_not_read_again(prepare, corpus, tmp_path):
    call(prepare, corpus, tmp_path / "csv")
    before = rows(tmp_path / "csv/train-clean-100.csv")
    shutil.rmtree(corpus / "train-clean-100")
    call(prepare, corpus, tmp_path / "csv")
    assert rows(tmp_path / "csv/train-clean-100.csv") == before
    call(prepare, corpus, tmp_path / "none", skip_prep=True)
    assert not (tmp_path / "none").exists()


def test_whoever_lacks_it_is_told_where_it_is(prepare, corpus, tmp_path):
    shutil.rmtree(corpus / "test-clean")
    with pytest.raises(FileNotFoundError, match="test-clean.*openslr.org/12"):
        call(prepare, corpus, tmp_path / "csv")


def test_half_an_archive_is_no_corpus(prepare, corpus, tmp_path):
    lost = corpus / "dev-clean/1002/10002/1002-10002-0000.flac"
    lost.unlink()
    with pytest.raises(ValueError, match="1 files of .* 2 tr.*1002-10002-0000"):
        call(prepare, corpus, tmp_path / "csv")
    assert not (tmp_path / "csv/dev-clean.csv").exists()
    for path in corpus.glob("dev-clean/*/*/*"):
        path.unlink()
    with pytest.raises(ValueError, match="0 files of audio and 0"):
        call(prepare, corpus, tmp_path / "csv")


def test_recipes_link_to_the_one_file():
    recipes = [path.parent for path in RECIPES.glob("*/train.py")]
    assert len(recipes) == 3
    for recipe in recipes:
        link = recipe / "librispeech_prepare.py"
        assert link.is_symlink()
        assert link.resolve() == RECIPES / "librispeech_prepare.py"
