"""What a fourth attack found, each as a test.

Authors
 * The speechbrain_merge authors 2026
"""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from sandbox import run_in_sandbox
from test_third_attack import results, stepped

from speechbrain_merge.adapters import merge_adapters
from speechbrain_merge.cli import main
from speechbrain_merge.engine import merge
from speechbrain_merge.methods import create
from speechbrain_merge.pool.bases import provide_base
from speechbrain_merge.pool.patterns import Patterns
from speechbrain_merge.pool.reading import read_pool
from speechbrain_merge.pool.run_folder import RunFolder
from speechbrain_merge.records.errors import RecordError
from speechbrain_merge.records.files import temporary_beside, write_whole
from speechbrain_merge.study.launch import _Submitit
from speechbrain_merge.study.page import family_tree
from speechbrain_merge.study.results import flat, read_results
from speechbrain_merge.weights import digest, fold, open_weights, write_weights
from speechbrain_merge.weights.adapter_scales import ADAPTER_KEY
from speechbrain_merge.weights.damage import damage_of

# --- adapters ----------------------------------------------------------------

BASE = {"fc.weight": torch.zeros(4, 3)}


def peft_folder(folder, **config):
    """An adapter of rank 2, as PEFT saves it."""
    folder.mkdir(exist_ok=True)
    write_weights(
        folder / "adapter_model.safetensors",
        {
            "base_model.model.fc.lora_A.weight": torch.ones(2, 3),
            "base_model.model.fc.lora_B.weight": torch.ones(4, 2),
        },
    )
    content = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, **config}
    (folder / "adapter_config.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    "config", [{"r": 8}, {"r": 8, "rank_pattern": {"other": 2}}]
)
def test_factors_of_another_rank_are_not_scaled_by_their_own(tmp_path, config):
    """The alpha on record was chosen for the rank on record."""
    folder = peft_folder(tmp_path / "a", **config)
    with pytest.raises(ValueError, match="rank 8 on record"):
        fold(folder, base=BASE)
    with pytest.raises(ValueError, match="rank 8 on record"):
        merge_adapters("average", [folder, folder], tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_the_rank_of_a_pattern_counts(tmp_path):
    folder = peft_folder(tmp_path / "a", r=8, rank_pattern={"fc": 2})
    folded = fold(folder, base=BASE)["fc.weight"]
    assert torch.equal(folded, torch.full((4, 3), 4.0))


def test_an_adapter_of_speechbrain_with_another_rank_on_record(tmp_path):
    names = "adapted_model.fc.adapter_{}_proj.weight"
    arguments = {
        "target_layers": ["fc"],
        "adapter_kwargs": {"rank": 16, "alpha": 16.0},
    }
    path = write_weights(
        tmp_path / "a.safetensors",
        {names.format("down"): torch.ones(2, 3)}
        | {names.format("up"): torch.ones(4, 2)},
        {ADAPTER_KEY: json.dumps(arguments)},
    )
    with pytest.raises(ValueError, match="rank 16 on record"):
        fold(path, base=BASE)


@pytest.mark.parametrize(
    "key, value",
    [
        ("bias", ["all"]),
        ("bias", "some"),
        ("base_model_name_or_path", {"a": 1}),
        ("modules_to_save", 7),
        ("modules_to_save", [[1]]),
        ("task_type", 7),
        ("auto_mapping", [1]),
        # in PEFT, too, "false" would be true
        ("use_rslora", "false"),
        ("fan_in_fan_out", "false"),
        ("r", "2"),
        ("rank_pattern", {"fc": 0}),
    ],
)
def test_entries_of_an_adapters_configuration_are_checked(tmp_path, key, value):
    folder = peft_folder(tmp_path / "a", **{key: value})
    other = peft_folder(tmp_path / "b")
    with pytest.raises(ValueError, match=f"adapter_config.json, key '{key}'"):
        merge_adapters("average", [folder, other], tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_an_alpha_that_is_not_the_adapters_own_is_refused(tmp_path):
    """It had silently replaced alpha, rank stabilisation and transposition."""
    folder = peft_folder(tmp_path / "a", use_rslora=True)
    with pytest.raises(ValueError, match="multiplied by 2.82843 as it was"):
        fold(folder, base=BASE, alpha=4.0)
    with pytest.raises(ValueError, match="multiplied by 2.82843 as it was"):
        merge_adapters("average", [folder], tmp_path / "m", alpha=4.0)
    own = fold(folder, base=BASE, alpha=4.0, rank_stabilised=True)
    assert torch.equal(own["fc.weight"], fold(folder, base=BASE)["fc.weight"])


# --- statistics --------------------------------------------------------------


@pytest.fixture
def experts(tmp_path):
    """Two experts in files, and the statistics of each."""
    for number in range(2):
        path = tmp_path / f"expert-{number}.safetensors"
        write_weights(path, {"fc.weight": torch.eye(3) * (number + 1)})
        about = {"statistics": "fisher", "weights": digest(path)}
        write_weights(
            tmp_path / f"fisher-{number}.safetensors",
            {"fc.weight": torch.full((3, 3), number + 1.0)},
            {"statistics": json.dumps(about)},
        )
    return tmp_path


def both(folder, name):
    """The files of both experts."""
    return [folder / f"{name}-{number}.safetensors" for number in range(2)]


@pytest.mark.parametrize("method", ["regmean", "optimal_transport"])
def test_statistics_of_another_kind_are_refused(experts, method):
    options = {"cost": "activations"} if method == "optimal_transport" else {}
    method = create(method, statistics=both(experts, "fisher"), **options)
    with pytest.raises(ValueError, match="kind 'fisher', and merge method"):
        merge(method, both(experts, "expert"), progress=False)


def test_statistics_of_another_expert_are_refused(experts):
    files = both(experts, "fisher")
    right = create("fisher", statistics=files)
    merged = merge(right, both(experts, "expert"), progress=False)
    assert merged["fc.weight"][0, 0] == pytest.approx(5 / 3)
    wrong = create("fisher", statistics=files[::-1])
    with pytest.raises(ValueError, match="in the order of the experts"):
        merge(wrong, both(experts, "expert"), progress=False)


def test_statistics_of_other_weights_are_warned_of(experts, caplog):
    write_weights(
        experts / "expert-1.safetensors", {"fc.weight": torch.zeros(3, 3)}
    )
    method = create("fisher", statistics=both(experts, "fisher"))
    with caplog.at_level("WARNING"):
        merge(method, both(experts, "expert"), progress=False)
    assert "expert-1.safetensors, for which they were given" in caplog.text


# --- results of studies ------------------------------------------------------


@pytest.fixture
def study(tmp_path):
    """The folder of a study."""
    (tmp_path / "study").mkdir()
    return tmp_path / "study"


def page(folder, found, capsys):
    """Writes the page of results; gives status and error."""
    (folder / "results.json").write_text(json.dumps(found))
    status = main(["study", str(folder), "--page"])
    return status, capsys.readouterr().err


def test_a_family_of_many_generations_is_drawn(study, capsys):
    found = results()
    (first,) = found["rows"]
    found["rows"] = [
        {**first, "name": f"{n}", "title": f"{n}", "parents": [f"{n - 1}"]}
        for n in reversed(range(3000))
    ]
    tree = family_tree(found, {})
    assert tree["columns"] == [[str(n)] for n in range(3000)]


def test_a_family_that_goes_in_a_circle_ends():
    found = results()
    (first,) = found["rows"]
    found["rows"] = [
        {**first, "name": one, "parents": parents}
        for one, parents in (("a", ["b"]), ("b", ["a", "c"]), ("c", ["a"]))
    ]
    assert sum(map(len, family_tree(found, {})["columns"])) == 3


@pytest.mark.parametrize(
    "change, key",
    [
        ({"sequences": [{}]}, "sequences"),
        ({"sequences": [{"name": "a", "domains": 7}]}, "sequences"),
        ({"tests": []}, "tests"),
        ({"modes": []}, "modes"),
        ({"seeds": list(range(20_000))}, "seeds"),
    ],
)
def test_results_without_what_tables_need(study, capsys, change, key):
    status, error = page(study, {**results(), **change}, capsys)
    assert status == 2
    assert "results.json" in error and key in error


@pytest.mark.parametrize("counts", [{"errors": 1e300}, {"words": 1e-300}])
def test_a_rate_that_is_no_number_is_refused(study, capsys, counts):
    """Of an infinite one, `statistics` has no deviation."""
    found = results()
    found["seeds"] = [1, 2]
    (row,) = found["rows"]
    row["sets"]["1"]["usual"]["set"].update(counts)
    row["sets"]["2"], row["about"]["2"] = row["sets"]["1"], {}
    status, error = page(study, found, capsys)
    assert status == 2
    assert "results.json" in error and next(iter(counts)) in error


def test_buckets_that_seeds_do_not_share_are_left_out(study):
    found = results()
    found["seeds"] = [1, 2]
    (row,) = found["rows"]
    (counts,) = row["sets"]["1"]["usual"].values()
    other = {**counts, "buckets": {"(5, 9]": {"errors": 1}}}
    counts["buckets"] = {"(0, 5]": {"errors": 1}}
    row["sets"]["2"], row["about"]["2"] = {"usual": {"set": other}}, {}
    (study / "results.json").write_text(json.dumps(found))
    (row,) = flat(read_results(study), "usual")["rows"]
    assert row["sets"]["set"]["errors"] == 2
    assert "buckets" not in row["sets"]["set"]


def test_a_folder_in_the_place_of_a_page_is_named(study, capsys):
    (study / "report.html").mkdir()
    (study / "report.html" / "mine").touch()
    status, _ = page(study, results(), capsys)
    assert status == 0 and (study / "report.html").is_file()
    assert (study / "report.before.html" / "mine").is_file()


# --- names and places --------------------------------------------------------

LONG = "é" * 110  # 220 bytes


def test_remains_of_a_file_with_a_long_name_go(tmp_path):
    path, other = tmp_path / f"{LONG}.json", tmp_path / f"{LONG}2.json"
    remains = temporary_beside(path)
    of_other = temporary_beside(other)
    remains.touch()
    of_other.touch()
    write_whole(path, "{}")
    assert sorted(tmp_path.iterdir()) == sorted([path, of_other])


@pytest.fixture
def key(tmp_path):
    """A private key, for tests that sign."""
    pytest.importorskip("model_signing")
    from signing_keys import write_key

    return write_key(tmp_path, "key")[0]


def test_a_name_without_room_for_a_signature_is_known_before(tmp_path, key):
    output = tmp_path / f"{'m' * 241}.safetensors"
    with pytest.raises(ValueError, match="would be the signature"):
        merge("average", [BASE, BASE], output=output, sign=key, progress=False)
    assert not output.exists()


def test_what_is_no_signature_is_not_replaced(tmp_path, key):
    """A person's file was, without a word."""
    output = tmp_path / "m.safetensors"
    mine = tmp_path / "m.safetensors.sig"
    mine.write_text("my notes")
    with pytest.raises(FileExistsError, match="and is none"):
        merge("average", [BASE, BASE], output=output, sign=key, progress=False)
    assert mine.read_text() == "my notes" and not output.exists()
    mine.unlink()
    for _ in range(2):
        merge("average", [BASE, BASE], output=output, sign=key, progress=False)
    assert "sigstore" in mine.read_text()


PLANS = """
import json, os, sys
from pathlib import Path
from speechbrain_merge.cli import main
root = Path(sys.argv[1])
for each in ("work", "plans"):
    (root / each).mkdir()
(root / "work" / "link").symlink_to(root)
os.chdir(root / "work")
plan = root / "plans" / "plan.yaml"
inside = ["m", f"{root}/plans/m", "deep/m", "link/plans/n"]
outside = ["../m1", "link/m2", f"{root}/m3", "../work2/m4"]
for number, output in enumerate([*inside, *outside]):
    merge = {"method": "average", "experts": ["../a.safetensors"]}
    merge["output"] = output + ".safetensors"
    plan.write_text(json.dumps({"stages": {"m": merge}}))
    line = ["merge", str(plan), "--quiet"]
    found = main(line), os.path.exists(merge["output"])
    wanted = (0, True) if output in inside else (2, False)
    assert found == wanted, (output, found)
    assert main([*line, "--anywhere"]) == 0
    assert os.path.exists(merge["output"])
"""


def test_a_strangers_plan_writes_in_its_place_only(tmp_path):
    write_weights(tmp_path / "a.safetensors", BASE)
    run_in_sandbox(PLANS, tmp_path)


def test_a_plan_of_many_stages_is_refused(tmp_path, capsys):
    """It ended in a RecursionError."""
    write_weights(tmp_path / "a.safetensors", BASE)
    stages = {
        f"s{n}": {"method": "average", "experts": [f"s{n + 1}"]}
        for n in range(300)
    }
    stages["s300"] = {
        "method": "average",
        "experts": [str(tmp_path / "a.safetensors")],
    }
    stages["s0"]["output"] = str(tmp_path / "m.safetensors")
    path = tmp_path / "plan.yaml"
    path.write_text(json.dumps({"stages": stages}))
    assert main(["merge", str(path), "--quiet"]) == 2
    assert "301 stages" in capsys.readouterr().err
    few = dict(list(stages.items())[-249:])
    few["s52"]["output"] = str(tmp_path / "m.safetensors")
    path.write_text(json.dumps({"stages": few}))
    assert main(["merge", str(path), "--quiet", "--dry-run"]) == 0


# --- folders of strangers ----------------------------------------------------


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    """A tiny Whisper in a folder of transformers."""
    pytest.importorskip("transformers")
    from tiny_models import tiny_whisper

    return Path(tiny_whisper(tmp_path_factory.mktemp("hub") / "w", layers=1))


def changed(whisper, folder, change):
    """A copy with other weights."""
    shutil.copytree(whisper, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


FC1 = "model.decoder.layers.0.fc1.weight"


@pytest.mark.parametrize("kind", ["ggml", "ctranslate2"])
@pytest.mark.parametrize(
    "change, message",
    [
        (lambda tensors: tensors.pop(FC1), "missing keys: .*fc1.weight"),
        (
            lambda tensors: tensors.update(
                {FC1.replace("0", "1"): torch.ones(2, 2)}
            ),
            "unexpected keys: .*fc1.weight",
        ),
    ],
)
def test_half_a_whisper_is_not_exported(
    whisper, tmp_path, capsys, kind, change, message
):
    """Weights that were missing were drawn at random."""
    if kind == "ctranslate2":
        pytest.importorskip("ctranslate2")
    folder = changed(whisper, tmp_path / "w", change)
    line = ["export", kind, str(folder), "-o", str(tmp_path / "out")]
    assert main(line) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name, content, message",
    [
        (
            "adapter_config.json",
            {"base_model_name_or_path": "evil/model", "peft_type": "LORA"},
            "holds an adapter",
        ),
        (
            "config.json",
            {"model_type": "whisper", "encoder_layers": 10**9},
            "config.json",
        ),
        ("config.json", [], "holds no Whisper"),
    ],
)
def test_hostile_folders_of_a_whisper(
    whisper, tmp_path, capsys, name, content, message
):
    folder = tmp_path / "w"
    shutil.copytree(whisper, folder)
    (folder / name).write_text(json.dumps(content))
    line = ["export", "ggml", str(folder), "-o", str(tmp_path / "out")]
    assert main(line) == 2
    assert message in capsys.readouterr().err


def test_an_output_layer_that_ggml_cannot_hold_is_not_left_out(
    whisper, tmp_path, capsys
):
    def change(tensors):
        embedding = tensors["model.decoder.embed_tokens.weight"]
        tensors["proj_out.weight"] = embedding * 2

    folder = changed(whisper, tmp_path / "w", change)
    config = json.loads((folder / "config.json").read_text())
    config["tie_word_embeddings"] = False
    (folder / "config.json").write_text(json.dumps(config))
    line = ["export", "ggml", str(folder), "-o", str(tmp_path / "out")]
    assert main(line) == 2
    assert "output layer of its own" in capsys.readouterr().err


def test_a_link_in_a_strangers_model_is_not_copied(tmp_path, capsys):
    """The file of the user that it led to would have been published."""
    (tmp_path / "secret").write_text("password")
    model, cache = tmp_path / "model", tmp_path / "models--a--b"
    (cache / "blobs").mkdir(parents=True)
    (cache / "blobs" / "1").write_text("{}")
    model.mkdir()
    (model / "config.json").symlink_to(cache / "blobs" / "1")
    write_weights(model / "model.safetensors", BASE)
    line = ["merge", "average", str(model), "-o", str(tmp_path / "out")]
    assert main([*line, "--quiet"]) == 0
    assert (tmp_path / "out" / "config.json").read_text() == "{}"
    shutil.rmtree(tmp_path / "out")
    (model / "vocab.txt").symlink_to(tmp_path / "secret")
    assert main([*line, "--quiet"]) == 2
    assert "vocab.txt is a link" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_pickles_that_others_left_among_jobs_are_not_opened(tmp_path):
    """submitit opens the pickle with the number of a job, which come again."""
    pytest.importorskip("submitit")
    for number in (1, 2):
        runner = _Submitit("local", 1, tmp_path, {})
        (own,) = [Path(runner.executor.folder)]
        assert own.parent == tmp_path and not list(own.iterdir())
        (own / f"{number}_0_result.pkl").write_text("a stranger's")
    assert len(list(tmp_path.iterdir())) == 2


def test_a_base_that_is_another_is_not_linked(tmp_path):
    """A manifest beside said that it was the same, and it became the base."""
    tensors = {"w": torch.ones(2)}
    beside = RunFolder(tmp_path / "a")
    beside.folder.mkdir()
    provide_base(beside, digest(tensors), tensors)
    path = beside.folder / "base.safetensors"
    with open_weights(path) as weights:
        metadata = dict(weights.metadata)
    write_weights(path, {"w": torch.zeros(2)}, metadata)
    run = RunFolder(tmp_path / "b")
    run.folder.mkdir()
    provide_base(run, digest(tensors), tensors)
    with open_weights(run.folder / "base.safetensors") as weights:
        assert torch.equal(weights["w"], tensors["w"])


def test_links_in_a_circle_are_looked_into_once(tmp_path):
    """Two of them kept `glob` busy for longer than anyone lives."""
    (tmp_path / "run" / "deep").mkdir(parents=True)
    for name in "ab":
        (tmp_path / "run" / name).symlink_to(tmp_path / "run")
    for path in (tmp_path / "m.pt", tmp_path / "run" / "deep" / "m.pt"):
        torch.save(BASE, path)
    (tmp_path / "elsewhere").symlink_to(tmp_path / "run" / "deep")
    found = read_pool(f"{tmp_path}/**/m.pt")
    assert [each.path for each in found] == [
        tmp_path / "m.pt",
        tmp_path / "run" / "deep" / "m.pt",
    ]
    assert Patterns().matching(f"{tmp_path}/r*/**") == sorted(
        f"{tmp_path}/run/{name}" for name in ("a", "b", "deep", "deep/m.pt")
    )
    with pytest.raises(ValueError, match=r"\*\* at most once"):
        read_pool(f"{tmp_path}/**/x/**/m.pt")


@pytest.mark.parametrize(
    "key, value",
    [
        ("updates/m.weight", torch.tensor(-1)),
        ("updates/m.weight", torch.tensor(1.5)),
        ("average/m.weight", torch.ones(2, 3) * 1j),
        ("average/m.weight", torch.ones(2, 3, dtype=torch.int64)),
    ],
)
def test_an_average_of_other_numbers_is_refused(tmp_path, key, value):
    """A negative count moved it away from the weights."""
    average = stepped(decay=0.9)
    path = tmp_path / "average.ckpt"
    average.save(path)
    save_file({**load_file(path), key: value}, path)
    with pytest.raises(RecordError, match=key):
        average.load(path, True)


# --- a full disk -------------------------------------------------------------

FULL = """
import contextlib, io, os, shutil, sys
from pathlib import Path
import torch
from speechbrain_merge.cli import main
from speechbrain_merge.weights import write_weights
root = Path(sys.argv[1])
disk, source = root / "disk", root / "source"
(source / "h.yaml").write_text(
    "fc: !new:torch.nn.Linear [100, 100, False]\\n"
    "modules: {fc: !ref <fc>}\\n"
    "pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer\\n"
    "    loadables: {fc: !ref <fc>}\\n"
)
weight = torch.randn(100, 100, generator=torch.Generator().manual_seed(0))
for name, value in (("a", 1.0), ("b", 1.1), ("c", 1.2)):
    write_weights(source / f"{name}.safetensors", {"fc.weight": weight * value})

def lines(first):
    a, b = f"{source}/{first}.safetensors", f"{source}/b.safetensors"
    yield ["merge", "average", a, b, "-o", f"{disk}/m.safetensors", "--quiet"]
    hparams = f"{source}/h.yaml"
    yield ["export", "pretrained", a, "--hparams", hparams, "-o", f"{disk}/out"]

def run(line):
    text = io.StringIO()
    with contextlib.redirect_stderr(text), contextlib.redirect_stdout(text):
        return main(line), text.getvalue()

def there():
    return {
        str(path): path.read_bytes()
        for path in disk.rglob("*")
        if path.is_file() and path.name != "filler"
    }

# in an export the YAML, the record, the card and the mark come last
MORE = [], range(49152, 57345, 4096)
for number in range(2):
    for free in (0, 4096, 36864, 45056, *MORE[number]):
        before, line = list(lines("a"))[number], list(lines("c"))[number]
        assert run(before)[0] == 0
        was = there()
        with open(disk / "filler", "wb") as file:
            status = os.statvfs(disk)
            room = status.f_bavail * status.f_frsize
            file.write(b"x" * max(0, room - free))
        code, text = run(line)
        assert code == 2 and str(disk) in text, (line, free, code, text)
        assert there() == was, (line, free)
        (disk / "filler").unlink()
        assert run(line)[0] == 0
        assert there() != was
        for path in disk.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
"""


def test_a_full_disk_changes_nothing(tmp_path):
    """Neither the file or folder before, nor any rest beside it."""
    for name in ("disk", "source"):
        (tmp_path / name).mkdir()
    run_in_sandbox(FULL, tmp_path, small="disk")


# --- the command line on what is no model ------------------------------------


def test_a_pipe_in_a_checkpoint_is_not_waited_for(tmp_path, capsys):
    checkpoint = tmp_path / "save" / "CKPT+1"
    checkpoint.mkdir(parents=True)
    (checkpoint / "CKPT.yaml").write_text("{epoch: 1, WER: 9.5}")
    os.mkfifo(checkpoint / "model.ckpt")
    assert damage_of(checkpoint / "model.ckpt")
    assert main(["inspect", str(tmp_path / "save")]) == 2
    assert "model.ckpt is no regular file" in capsys.readouterr().err


def test_warnings_of_a_comparison_hold_no_control_characters(tmp_path, capsys):
    path = tmp_path / "a\x1b[2J\u202e.safetensors"
    write_weights(path, {"encoder.layers.0.fc.weight": torch.eye(3)})
    assert main(["compare", *[str(path)] * 3, "-o", str(tmp_path / "out")]) == 0
    assert not {"\x1b", "\u202e"} & set("".join(capsys.readouterr()))
