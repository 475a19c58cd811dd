"""Kills, full disks, clocks and locks: training and merging go on."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from filled_pool import collect, names, saver_of, train_a_little
from tiny_models import TinyCTC, tiny_ctc_brain, tiny_network

from speechbrain.utils.checkpoints import (
    Checkpointer,
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from speechbrain_merge.pool import CheckpointPool, read_merges, read_pool
from speechbrain_merge.pool.half_written import pass_over_remains
from speechbrain_merge.pool.manifest import hold
from speechbrain_merge.weights import open_weights
from speechbrain_merge.weights.damage import damage_of

FIRST_SAVE = """
import sys
from pathlib import Path
import torch
from speechbrain.utils.checkpoints import (
    Checkpointer,
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from speechbrain_merge.pool import CheckpointPool
folder, full = Path(sys.argv[1]), sys.argv[2] == "full"
model = torch.nn.Linear(2, 2)
for parameter in model.parameters():
    torch.nn.init.ones_(parameter)
pool = CheckpointPool((sys.argv[3:] or [folder / "pool"])[0], {"model": model})

class Last(torch.nn.Linear):
    def state_dict(self, *arguments, **settings):
        if full:
            raise OSError("No space left on device")
        return super().state_dict(*arguments, **settings)

modules = {"model": model, "pool": pool, "last": Last(1, 1)}
saver = Checkpointer(folder / "save", modules)
class Brain: checkpointer = saver; optimizer_step = None
pool.begin(Brain())
saver.save_checkpoint(meta={"WER": 1.0, "epoch": 1})
"""


def test_a_first_save_that_failed_is_known_again(tmp_path):
    def run(*words):
        command = [sys.executable, "-c", FIRST_SAVE, str(tmp_path), *words]
        return subprocess.run(command, capture_output=True, text=True)

    assert "No space left" in run("full").stderr
    assert run("free").returncode == 0
    found = read_pool(tmp_path / "pool")
    assert [each.name for each in found] == ["run/epoch-0001"]
    # One that ended well keeps its run, whatever becomes of its checkpoints
    shutil.rmtree(tmp_path / "save")
    assert run("free").returncode == 0
    found = read_pool(tmp_path / "pool")
    assert [each.run for each in found] == ["run", "run-2"]


def test_a_first_save_that_failed_is_no_other_trainings(tmp_path):
    """One that saves elsewhere keeps away from its run and its base."""

    def run(name, word):
        (tmp_path / name).mkdir(exist_ok=True)
        places = str(tmp_path / name), word, str(tmp_path / "pool")
        command = [sys.executable, "-c", FIRST_SAVE, *places]
        return subprocess.run(command, capture_output=True, text=True)

    assert "No space left" in run("one", "full").stderr
    assert run("two", "free").returncode == 0
    first, second = read_pool(tmp_path / "pool")
    assert [first.run, second.run] == ["run", "run-2"]
    assert run("one", "free").returncode == 0
    again = read_pool(tmp_path / "pool")
    assert [each.name for each in again] == [first.name, second.name]
    pointers = [
        json.loads(path.read_text())["run"]
        for path in sorted(tmp_path.glob("*/save/*/pool.ckpt"))
    ]
    assert pointers[-1] == "run-2" and set(pointers[:-1]) == {"run"}


def test_the_lock_stays_when_the_process_copies_its_pool(tmp_path):
    collect(tmp_path, [{"WER": 3.0}])
    shutil.copytree(tmp_path / "pool", tmp_path / "copy")
    other = (
        "import sys; from speechbrain_merge.pool.manifest import hold; "
        "print(hold(sys.argv[1]))"
    )
    command = [sys.executable, "-c", other, str(tmp_path / "pool" / "run")]
    assert subprocess.check_output(command, text=True).strip() == "False"


def test_a_child_does_not_keep_the_lock(tmp_path):
    script = (
        "import os, sys, time\n"
        "from speechbrain_merge.pool.manifest import hold\n"
        "assert hold(sys.argv[1])\n"
        "child = os.fork()\n"
        "if child: print(child, flush=True); os._exit(0)\n"
        "os.close(1); time.sleep(60)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    child = int(subprocess.check_output(command, text=True))
    try:
        assert hold(tmp_path)
    finally:
        os.kill(child, 9)


def test_a_relative_pool_stays_where_it_is(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    model = torch.nn.Linear(2, 2)
    pool = CheckpointPool("pool", {"model": model})
    saver = saver_of(tmp_path, model, pool)
    saver.save_checkpoint(meta={"WER": 2.0, "epoch": 1})
    monkeypatch.chdir(tmp_path / "elsewhere")
    train_a_little(model)
    saver.save_checkpoint(meta={"WER": 1.0, "epoch": 2})
    assert names(pool) == ["run/epoch-0001", "run/epoch-0002"]
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [
        "",
        "WER: [",
        "WER: 3",
        "unixtime: null\nWER: 3\n",
        "unixtime: .nan\n",
        "\0" * 40,
    ],
)
def test_a_torn_meta_hides_no_other_checkpoint(tmp_path, content, caplog):
    _, saver, _ = collect(tmp_path, [{"WER": 3.0}])
    torn = tmp_path / "save" / "CKPT+torn"
    shutil.copytree(saver.list_checkpoints()[0].path, torn)
    (torn / "CKPT.yaml").write_text(content)
    found = read_pool(tmp_path / "save", skip_broken=True)
    assert len([each for each in found if each.path != torn]) == 1

    model = torch.nn.Linear(2, 2)
    pool = CheckpointPool(tmp_path / "pool", {"model": model})
    saver = saver_of(tmp_path, model, pool)

    class Brain:
        checkpointer = saver
        optimizer_step = 0

    pool.begin(Brain())
    saver.recover_if_possible()
    assert model.weight[0, 0] == 1.0
    train_a_little(model, 2.0)
    # and the checkpointer can choose again which checkpoints to keep
    saver.save_and_keep_only(meta={"WER": 2.0, "epoch": 2})
    assert [each.epoch for each in pool.candidates()] == [1, 2]
    assert torn.is_dir()
    assert "CKPT+torn is passed over" in caplog.text


@pytest.mark.parametrize("what", ["zeros", "first byte", "pointer"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, what):
    _, saver, _ = collect(tmp_path, [{"WER": 3.0}])
    [first] = saver.list_checkpoints()
    broken = tmp_path / "save" / "CKPT+broken"
    shutil.copytree(first.path, broken)
    meta = (broken / "CKPT.yaml").read_text()
    (broken / "CKPT.yaml").write_text(
        meta.replace("unixtime: 1", "unixtime: 9")
    )
    path = broken / "model.ckpt"
    if what == "zeros":
        path.write_bytes(bytes(path.stat().st_size))
    elif what == "first byte":
        path.write_bytes(b"X" + path.read_bytes()[1:])
    else:
        (broken / "pool.ckpt").write_text('{"pool": ')
    model = torch.nn.Linear(2, 2)
    pool = CheckpointPool(tmp_path / "pool", {"model": model})
    saver = saver_of(tmp_path, model, pool)
    pass_over_remains(saver)
    assert saver.recover_if_possible().path == first.path


def test_a_cut_file_of_the_brain_is_passed_over(tmp_path):
    brain = tiny_ctc_brain(tmp_path, tiny_network(0), TinyCTC)
    saver = brain.checkpointer
    saver.add_recoverable("brain", brain)
    first = saver.save_checkpoint(name="first")
    second = saver.save_checkpoint(name="second")
    path = second.paramfiles["brain"]
    content = path.read_bytes()
    pass_over_remains(saver)
    for length in range(len(content)):
        path.write_bytes(content[:length])
        assert saver.recover_if_possible().path == first.path, length
    path.write_bytes(content)
    assert saver.recover_if_possible().path == second.path


def test_a_torch_file_of_one_byte_breaks_off(tmp_path):
    torch.save({"weight": torch.ones(2)}, tmp_path / "model.ckpt")
    content = (tmp_path / "model.ckpt").read_bytes()
    for length in range(len(content)):
        (tmp_path / "model.ckpt").write_bytes(content[:length])
        assert damage_of(tmp_path / "model.ckpt"), length


def test_half_a_checkpoint_is_no_smaller_model(tmp_path):
    folder = tmp_path / "CKPT+half"
    folder.mkdir()
    (folder / "CKPT.yaml").write_text("unixtime: 1.0\n")
    for name in ("encoder", "decoder"):
        torch.save({"weight": torch.ones(20)}, folder / f"{name}.ckpt")
    (folder / "counter.ckpt").write_text("3")
    (folder / "tokenizer.ckpt").write_bytes(b"\n\x0e\n\x05<unk>\x15\0\0\0\0")
    whole = (folder / "decoder.ckpt").read_bytes()
    with open_weights(folder) as weights:
        assert weights.names() == ["decoder.weight", "encoder.weight"]
    for damaged in (b"X" + whole[1:], bytes(len(whole)), whole[:100]):
        (folder / "decoder.ckpt").write_bytes(damaged)
        with pytest.raises(ValueError, match="decoder.ckpt"):
            open_weights(folder)


def test_a_checkpoint_that_lacks_a_module_is_named(tmp_path):
    modules = {name: torch.nn.Linear(1, 1) for name in ("encoder", "decoder")}
    saver = Checkpointer(tmp_path / "save", modules)
    saver.save_checkpoint(name="whole")
    half = saver.save_checkpoint(name="half").path
    assert len(read_pool(half)) == 1
    (half / "decoder.ckpt").unlink()
    for source in (half, tmp_path / "save"):
        with pytest.raises(ValueError, match="CKPT.half: half-written.*decod"):
            read_pool(source)


def test_a_clock_set_back_changes_no_order(tmp_path):
    _, saver, _ = collect(tmp_path, [{"WER": 3.0}] * 4)
    shutil.rmtree(tmp_path / "save")
    model = torch.nn.Linear(2, 2)
    pool = CheckpointPool(tmp_path / "other", {"model": model})
    saver = saver_of(tmp_path, model, pool)
    for epoch in (1, 2, 3, 4):
        saver.save_checkpoint(meta={"WER": 1.0, "epoch": epoch})
    for checkpoint in saver.list_checkpoints():
        epoch, text = checkpoint.meta["epoch"], []
        for line in (checkpoint.path / "CKPT.yaml").read_text().splitlines():
            if line.startswith("unixtime"):  # set back by a day, twice
                line = f"unixtime: {1e9 - 86400 * (epoch // 2)}"
            text.append(line)
        (checkpoint.path / "CKPT.yaml").write_text("\n".join(text) + "\n")
    found = read_pool(tmp_path / "save")
    assert [each.epoch for each in found] == [1, 2, 3, 4]


def test_a_newer_merge_is_found_although_the_clock_was_set_back(
    tmp_path, monkeypatch
):
    from speechbrain_merge.pool.merges import (
        Member,
        MergeRecord,
        find_merge,
        remember,
    )

    for run, when in (("a", 2e9), ("b", 1e9), ("c", 1.5e9)):
        members = (Member(f"{run}/1", run, "0" * 64),)
        record = MergeRecord("aode", {"name": "average"}, members, time=when)
        remember(tmp_path, record)
    assert find_merge([tmp_path], "aode").runs == ["c"]
    assert [each.runs for each in read_merges(tmp_path)] == [
        ["a"],
        ["b"],
        ["c"],
    ]


@register_checkpoint_hooks
class Own:
    """A recoverable of a recipe, of which SpeechBrain asks nothing."""

    def __init__(self, write):
        self.write, self.read = write, None

    @mark_as_saver
    def save(self, path):
        self.write(Path(path))

    @mark_as_loader
    def load(self, path, end_of_epoch):
        self.read = path


def _folder(path):
    path.mkdir()
    (path / "vocab.json").write_text("[]")


OF_A_RECIPE = {
    "a folder": _folder,
    "lines of JSON": lambda path: path.write_text('{"a": 1}\n{"a": 2}\n'),
    "a dict as text": lambda path: path.write_text(str({"a": 1})),
    "nothing": lambda path: path.touch(),
    "zeros": lambda path: path.write_bytes(bytes(5000)),
    "a huge number": lambda path: path.write_text('{"a": 1%s}' % ("0" * 9000)),
}


@pytest.mark.parametrize("kind", OF_A_RECIPE)
def test_whatever_a_recipe_saves_a_training_goes_on(tmp_path, kind):
    """Each checkpoint was passed over, and the training began again."""
    epochs = []
    for epoch in (1, 2):
        model, own = tiny_network(0), Own(OF_A_RECIPE[kind])
        pool = CheckpointPool(tmp_path / "pool", {"model": model})
        modules = {"model": model, "own": own, "pool": pool}
        saver = Checkpointer(tmp_path / "save", modules)
        pool.begin(SimpleNamespace(checkpointer=saver, optimizer_step=None))
        found = saver.recover_if_possible()
        epochs.append(found and found.meta["epoch"])
        torch.nn.init.constant_(model.ctc_lin.bias, epoch)  # trained
        saver.save_checkpoint(meta={"epoch": epoch})
        if kind not in ("nothing", "zeros"):  # as of a model that was cut
            with open_weights(saver.find_checkpoint().path) as weights:
                assert "model.ctc_lin.bias" in weights.names()
    assert epochs == [None, 1]
    # a copy of it goes on beside it, as any training's
    shutil.copytree(tmp_path / "save", tmp_path / "copy")
    modules["pool"] = CheckpointPool(tmp_path / "pool", {"model": model})
    saver = Checkpointer(tmp_path / "copy", modules)
    modules["pool"].begin(
        SimpleNamespace(checkpointer=saver, optimizer_step=None)
    )
    assert saver.recover_if_possible().meta["epoch"] == 2
    torch.nn.init.constant_(model.ctc_lin.bias, 3.0)
    saver.save_checkpoint(meta={"epoch": 3})
    names = [each.name for each in read_pool(tmp_path / "pool")]
    assert names[:2] == ["run/epoch-0001", "run/epoch-0002"]
    assert names[-1] == "run-2/epoch-0003"


def test_a_cut_pointer_of_a_pool_is_damage(tmp_path):
    path = tmp_path / "pool.ckpt"
    for text in ('{"pool": "a", "run', '{"n_steps": 1', "{"):
        path.write_text(text)
        assert damage_of(path) == "pool.ckpt breaks off"
