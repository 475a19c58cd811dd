"""Files and folders appear whole, replace only what is ours, leave nothing."""

import os
import subprocess
import sys

import pytest

from speechbrain_merge.records import folders
from speechbrain_merge.records.files import (
    create_temporary,
    remove_stale,
    temporary_beside,
    write_whole,
)
from speechbrain_merge.records.folders import (
    recover_folder,
    refuse_own_source,
    remove_stale_folders,
    whole_folder,
    working_folder,
)
from speechbrain_merge.records.ownership import MARK


def entries(folder):
    """Names of all in a folder."""
    return sorted(path.name for path in folder.iterdir())


def fill(target, **files):
    """Writes a whole folder."""
    with whole_folder(target) as folder:
        for name, text in files.items():
            (folder / name).write_text(text)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "note"
    write_whole(path, "first")
    with pytest.raises(TypeError):
        write_whole(path, 7)
    assert path.read_text() == "first"
    assert entries(tmp_path) == ["note"]


def test_what_a_living_process_writes_is_no_remains(tmp_path):
    temporary, descriptor = create_temporary(tmp_path / "model.safetensors")
    assert remove_stale(tmp_path) == []
    os.close(descriptor)  # as the system does when a process ends
    assert remove_stale(tmp_path) == [temporary]


def test_what_another_process_writes_is_no_remains(tmp_path):
    code = (
        "import sys; from speechbrain_merge.records.files import *\n"
        f"create_temporary({str(tmp_path / 'a')!r})\n"
        "print('written', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert other.stdout.readline() == b"written\n"
    assert remove_stale(tmp_path) == []
    other.kill()
    other.wait()
    assert len(remove_stale(tmp_path)) == 1


def test_only_our_own_names_are_remains(tmp_path):
    for name in (".a.partial", "a.0123abcd-0123456789ab.partial", "b.tmp"):
        (tmp_path / name).write_text("mine")
    (temporary_beside(tmp_path / "other")).write_text("theirs")
    before = entries(tmp_path)
    assert remove_stale(tmp_path, "model") == []
    assert entries(tmp_path) == before


def test_a_link_with_a_temporary_name_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    temporary_beside(tmp_path / "model").symlink_to(victim)
    remove_stale(tmp_path)
    assert victim.read_text() == "precious"


def test_names_of_full_length_can_be_written(tmp_path):
    path = tmp_path / ("n" * 255)
    write_whole(path, "x")
    assert path.read_text() == "x"


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_is_replaced_by_a_whole_one(tmp_path, monkeypatch, exchange):
    if not exchange:  # as on systems that cannot
        monkeypatch.setattr(folders, "_exchange", lambda *_: False)
    target = tmp_path / "model"
    fill(target, a="1", b="2")
    fill(target, b="3")
    assert entries(target) == [MARK, "b"]
    assert entries(tmp_path) == ["model"]


def test_folders_of_like_names_are_a_persons_own(tmp_path):
    for name in ("model.old", "model.tmp", "model.partial", ".model.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.tex").write_text("years of work")
    before = entries(tmp_path)
    fill(tmp_path / "model", a="1")
    fill(tmp_path / "model", a="2")
    assert entries(tmp_path) == sorted([*before, "model"])


@pytest.mark.parametrize("what", ["added", "changed", "no mark", "torn mark"])
def test_what_is_not_ours_is_not_replaced(tmp_path, what):
    target = tmp_path / "model"
    fill(target, a="1")
    if what == "added":
        (target / "notes.txt").write_text("mine")
    elif what == "changed":
        (target / "a").write_text("2")
    elif what == "no mark":
        (target / MARK).unlink()
    else:
        (target / MARK).write_text("{")
    before = {path.name: path.read_text() for path in target.iterdir()}
    with pytest.raises(FileExistsError, match="Nothing was changed"):
        fill(target, a="3")
    assert {p.name: p.read_text() for p in target.iterdir()} == before
    assert entries(tmp_path) == ["model"]


def test_an_empty_folder_of_a_person_is_kept(tmp_path):
    fill(tmp_path / "model", a="1")
    (tmp_path / "model" / "mine").mkdir()
    with pytest.raises(FileExistsError, match="'mine'. Nothing was changed"):
        fill(tmp_path / "model", a="2")
    assert (tmp_path / "model" / "mine").is_dir()


def test_what_comes_in_while_we_write_is_kept(tmp_path):
    target = tmp_path / "model"
    fill(target, a="1")
    with pytest.raises(FileExistsError, match="'notes.txt'"):
        with whole_folder(target) as folder:
            (folder / "a").write_text("2")
            (target / "notes.txt").write_text("mine")
    assert (target / "a").read_text() == "1"
    assert (target / "notes.txt").read_text() == "mine"


def test_a_link_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "model").symlink_to(tmp_path / "data")
    with pytest.raises(FileExistsError, match="a link"):
        fill(tmp_path / "model", a="1")
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    refuse_own_source(loop, [tmp_path / "data"])
    with pytest.raises(FileExistsError, match="a link"):
        fill(loop, a="1")


def test_a_failed_folder_leaves_the_one_before(tmp_path):
    target = tmp_path / "model"
    fill(target, a="1")
    with pytest.raises(ZeroDivisionError):
        with whole_folder(target) as folder:
            (folder / "a").write_text("2")
            _ = 1 / 0
    assert (target / "a").read_text() == "1"
    assert entries(tmp_path) == ["model"]


def test_remains_of_a_killed_process_go_at_the_next_writing(tmp_path):
    code = (
        "import os, signal; from speechbrain_merge.records.folders import *\n"
        f"with whole_folder({str(tmp_path / 'model')!r}) as folder:\n"
        "    (folder / 'a').write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    assert len(entries(tmp_path)) == 1
    fill(tmp_path / "model", a="1")
    assert entries(tmp_path) == ["model"]


def test_remains_with_something_of_a_person_in_them_stay(tmp_path):
    remains = temporary_beside(tmp_path / "model")
    fill(remains, a="1")  # as an old folder that was not removed to its end
    (remains / "notes.txt").write_text("mine")
    assert remove_stale_folders(tmp_path) == []
    (remains / "notes.txt").unlink()
    assert remove_stale_folders(tmp_path) == [remains]


def test_a_folder_that_was_put_aside_comes_back(tmp_path):
    target = tmp_path / "model"
    fill(target, a="1", b="2")
    os.rename(target, temporary_beside(target))  # and killed there
    assert recover_folder(target)
    assert entries(target) == [MARK, "a", "b"]
    # One that was half removed is not taken for whole
    aside = temporary_beside(target)
    os.rename(target, aside)
    (aside / "a").unlink()
    assert not recover_folder(target)


def test_two_at_once_leave_one_whole_folder(tmp_path):
    code = (
        "import sys; from speechbrain_merge.records.folders import *\n"
        "for _ in range(30):\n"
        f"    with whole_folder({str(tmp_path / 'model')!r}) as folder:\n"
        "        for name in 'abcdef':\n"
        "            (folder / name).write_text(sys.argv[1])\n"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", code, word]) for word in "12"
    ]
    assert [each.wait() for each in both] == [0, 0]
    assert entries(tmp_path) == ["model"]
    files = [tmp_path / "model" / name for name in "abcdef"]
    assert len({path.read_text() for path in files}) == 1


def test_a_working_folder_leaves_nothing(tmp_path):
    target = tmp_path / "final.safetensors"
    with pytest.raises(ZeroDivisionError), working_folder(target) as folder:
        (folder / "half").write_text("1")
        # while it is held, the next one does not take it for remains
        with working_folder(target) as other:
            assert folder != other and (folder / "half").is_file()
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_written_again_takes_the_remains_away(tmp_path):
    remains = temporary_beside(tmp_path / "result.json")
    other = temporary_beside(tmp_path / "other.json")
    for path in (remains, other):
        path.write_text("{")
    write_whole(tmp_path / "result.json", "{}")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"result.json", other.name}
