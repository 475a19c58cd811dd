"""The command line: what it prints, writes and refuses."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_conformer, tiny_whisper

from speechbrain.integrations.huggingface.whisper import Whisper
from speechbrain_merge import merge
from speechbrain_merge.cli import main
from speechbrain_merge.command.comparison import compare
from speechbrain_merge.engine import provenance
from speechbrain_merge.methods import available, create
from speechbrain_merge.weights import matches, open_weights, write_weights


@pytest.fixture
def models(tmp_path, monkeypatch):
    """A base and three experts in the folder that commands run in."""
    monkeypatch.chdir(tmp_path)
    base = tiny_conformer(0).state_dict()
    states = {"base": base}
    for seed, name in enumerate(("a", "b", "c"), start=1):
        generator = torch.Generator().manual_seed(seed)
        states[name] = {
            key: tensor + 0.1 * torch.randn(tensor.shape, generator=generator)
            for key, tensor in base.items()
        }
    for name, state in states.items():
        torch.save(state, f"{name}.pt")
    return states


def run(*arguments):
    """Exit status of a command."""
    return main([str(argument) for argument in arguments])


def read(path):
    """A file's weights."""
    with open_weights(path) as weights:
        return dict(weights)


def same(path, expected):
    """Whether a file has these weights, to the bit."""
    found = read(path)
    return list(found) == list(expected) and all(
        torch.equal(found[name], expected[name]) for name in found
    )


def test_the_installed_command(models):
    script = Path(sys.executable).with_name("speechbrain-merge")
    command = [
        script,
        "merge",
        "average",
        "a.pt",
        "b.pt",
        "-o",
        "m.safetensors",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "m.safetensors: merged\n"
    expected = create("average")([models["a"], models["b"]])
    assert same("m.safetensors", expected)
    # an error is a line, without traceback
    done = subprocess.run(
        [*command[:4], "none.pt", *command[5:]], capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stdout == ""
    *_, line = done.stderr.splitlines()
    assert "'none.pt' is neither a stage nor a file" in line
    assert "Traceback" not in done.stderr


def test_a_merge_with_parameters_and_parts(models, capsys):
    arguments = [
        "merge",
        "ties",
        "a.pt",
        "b.pt",
        "--base",
        "base.pt",
        "--quiet",
    ]
    more = ["--parameters", "{density: 0.3, scale: 0.5}"]
    assert run(*arguments, *more, "-o", "ties.safetensors") == 0
    method = create("ties", density=0.3, scale=0.5)
    experts = [models["a"], models["b"]]
    assert same("ties.safetensors", method(experts, models["base"]))
    record = provenance("ties.safetensors")
    assert record["parameters"]["density"] == 0.3
    assert record["base"]["path"] == "base.pt"
    assert [each["path"] for each in record["sources"]] == ["a.pt", "b.pt"]

    parts = ["--include", "attention", "--include", "encoder.layers.1"]
    parts += ["--exclude", "norm*", "--otherwise", "first"]
    assert run(*arguments, *more, *parts, "-o", "part.safetensors") == 0
    merged = read("part.safetensors")
    for name, tensor in merged.items():
        inside = matches(name, "attention") or matches(name, "encoder.layers.1")
        assert torch.equal(tensor, models["a"][name]) != inside, name

    # asked again, it is not made again; changed, it is
    capsys.readouterr()
    assert run(*arguments, *more, "-o", "ties.safetensors") == 0
    assert capsys.readouterr().out == "ties.safetensors: up to date\n"
    assert run(*arguments, "-o", "ties.safetensors", "--workers", 2) == 0
    assert capsys.readouterr().out == "ties.safetensors: merged\n"
    assert same("ties.safetensors", create("ties")(experts, models["base"]))


def test_a_base_from_elsewhere(models):
    """A base that calls its tensors something else, as the hub's do."""
    renamed = {f"model.{name}": t for name, t in models["base"].items()}
    torch.save(renamed, "hub.pt")
    for base, output in (("hub.pt", "x"), ("base.pt", "y")):
        output += ".safetensors"
        arguments = ["a.pt", "b.pt", "--base", base, "-o", output]
        assert run("merge", "task_arithmetic", *arguments) == 0
    assert same("x.safetensors", read("y.safetensors"))
    assert provenance("x.safetensors")["base"]["path"] == "hub.pt"


PLAN = """\
stages:
    final:
        method: ties
        parameters: {density: 0.4}
        experts: [halves, c.pt]
        base: base.pt
        output: out/final.safetensors
    halves:
        method: average
        experts: [a.pt, b.pt]
    apart:
        method: slerp
        parameters: {t: 0.5}
        experts: [kept, a.pt]
        output: out/apart.safetensors
    kept:
        method: restricted
        parameters:
            method: {method: average, weights: [3, 1]}
            include: encoder
        experts: [b.pt, c.pt]
        output: out/kept.safetensors
"""


def plan(old="", new=""):
    """Writes the plan with something replaced; gives its name."""
    assert old in PLAN
    Path("plan.yaml").write_text(PLAN.replace(old, new) if old else PLAN)
    return "plan.yaml"


def test_a_plan(models, capsys):
    assert run("merge", plan(), "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" ")[0] for line in lines] == [
        "halves",
        "final",
        "kept",
        "apart",
    ]
    assert "final [to be merged]: TIES(density=0.4" in lines[1]
    assert "of halves, " in lines[1] and "base base.pt" in lines[1]
    assert not Path("out").exists()

    assert run("merge", plan(), "--quiet") == 0
    assert capsys.readouterr().out.count(": merged") == 4
    a, b, c = (models[name] for name in "abc")
    halves = create("average")([a, b])
    final = create("ties", density=0.4)([halves, c], models["base"])
    assert same("out/final.safetensors", final)
    weighted = create("average", weights=[3, 1])
    kept = create("restricted", method=weighted, include="encoder")([b, c])
    assert same("out/kept.safetensors", kept)
    assert same("out/apart.safetensors", create("slerp", t=0.5)([kept, a]))
    assert provenance("out/kept.safetensors")["parameters"]["method"] == {
        "method": "average",
        "parameters": {"weights": [3, 1]},
    }
    # what was not asked for is not there
    assert sorted(os.listdir("out")) == [
        "apart.safetensors",
        "final.safetensors",
        "kept.safetensors",
    ]
    sources = provenance("out/final.safetensors")["sources"]
    assert [each["label"] for each in sources][0] == "halves"


def test_a_plan_makes_only_what_is_new(models, capsys):
    def states(*more):
        capsys.readouterr()
        assert run("merge", plan(), "--quiet", *more) == 0
        lines = capsys.readouterr().out.splitlines()
        return {line.split(":")[0]: line for line in lines}

    times = {}
    assert all(": merged" in line for line in states().values())
    for path in Path("out").iterdir():
        times[path.name] = path.stat().st_mtime_ns
    again = states()
    # nothing needs the halves now
    assert set(again) == {"final", "kept", "apart"}
    assert all(": up to date" in line for line in again.values())
    # another c.pt: final and kept are made of it, and apart of kept
    torch.save({n: t + 1 for n, t in models["c"].items()}, "c.pt")
    dry = states("--dry-run")
    assert "final [to be merged]" in " ".join(dry)
    changed = states()
    assert all(": merged" in line for line in changed.values())
    # a lost output is made again, and only that
    Path("out/apart.safetensors").unlink()
    found = states()
    assert ": merged" in found["apart"] and ": up to date" in found["kept"]
    # other parameters of the first stage reach the last
    assert run("merge", plan("[3, 1]", "[1, 3]"), "--quiet") == 0
    out = capsys.readouterr().out
    assert "apart: merged" in out and "final: up to date" in out


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("[a.pt, b.pt]", "[a.pt, final]", "circle: final -> halves -> final"),
        ("[a.pt, b.pt]", "[halves]", "circle: halves -> halves"),
        ("[halves, c.pt]", "[halve, c.pt]", "(did you mean 'halves'?)"),
        ("[halves, c.pt]", "[halves, no*.pt]", "'no*.pt' is neither a stage"),
        ("base: base.pt", "base: bass.pt", "'bass.pt' is neither a stage"),
        ("        base: base.pt\n", "", "stage 'final': method 'ties'"),
        ("method: ties", "method: tie", "Did you mean 'ties'"),
        ("{density: 0.4}", "{densty: 0.4}", "no parameter 'densty'"),
        ("{density: 0.4}", "{density: 4}", "`density` must be"),
        ("{density: 0.4}", "0.4", "`parameters` are names and values"),
        ("method: slerp", "methods: slerp", "(did you mean 'method'?)"),
        ("experts: [a.pt, b.pt]", "experts: []", "'halves': has no `experts`"),
        ("[kept, a.pt]", "[kept]", "stage 'apart': Merge method 'slerp'"),
        ("out/apart", "out/final", "have the same output"),
        ("final.safetensors", "final.pt", "must end in .safetensors"),
        ("\n        output: out/apart.safetensors", "", "needs an `output`"),
        ("    apart:", "    final:", "line 11: not YAML: found duplicate key"),
        ("stages:", "stages: [", "is not plain YAML"),
        ("stages:", "merges:", "a plan has one key, `stages`"),
        ("include: encoder", "include: encodr", "names no part of a model"),
    ],
)
def test_wrong_plans(models, capsys, old, new, message):
    assert run("merge", plan(old, new), "--quiet") == 2
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error, error
    assert error.startswith("speechbrain-merge merge: plan.yaml")
    # known before anything is merged
    assert not Path("out").exists()


@pytest.mark.parametrize(
    "put, message",
    [
        (lambda path: write_weights(path, read("a.pt")), "that no merge made"),
        (Path.mkdir, "is a folder"),
        (lambda path: path.symlink_to(path.name), "is a link"),
        (os.mkfifo, "that no merge made"),
    ],
)
def test_the_last_output_of_a_plan_is_checked_first(
    models, capsys, put, message
):
    last = Path("out/apart.safetensors")
    last.parent.mkdir()
    put(last)
    before = last.lstat().st_ino, last.lstat().st_mtime_ns
    for more in ("--dry-run", "--quiet"):
        assert run("merge", plan(), more) == 2
        printed = capsys.readouterr()
        assert "apart.safetensors" in printed.err and message in printed.err
        assert printed.out == ""
        assert [*last.parent.iterdir()] == [last]
        assert before == (last.lstat().st_ino, last.lstat().st_mtime_ns)


def test_an_empty_file_is_as_good_as_none(models):
    Path("m.safetensors").touch()
    line = ["merge", "average", "a.pt", "b.pt", "-o", "m.safetensors"]
    assert run(*line, "--dry-run") == 0
    assert run(*line, "--quiet") == 0
    assert same("m.safetensors", create("average")([models["a"], models["b"]]))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("merge average a.pt b.pt", "--output"),
        ("merge average -o m.safetensors", "give the experts"),
        ("merge average a.pt b.pt -o m.pt", "must end in .safetensors"),
        ("merge averge a.pt b.pt -o m.safetensors", "Did you mean 'average'"),
        ("merge ties a.pt b.pt -o m.safetensors", "give `base`"),
        (
            "merge average a.pt odd.pt -o m.safetensors",
            "which the other does not have",
        ),
        ("merge average a.pt torn.pt -o m.safetensors", "torn.pt"),
        ("merge average a.pt b.pt -o m.safetensors --workers 0", "--workers"),
        ("merge none.yaml", "none.yaml"),
        ("merge p.yaml a.pt -o m.safetensors", "leave out experts, --output"),
        ("inspect none.pt", "none.pt does not exist"),
        ("inspect torn.pt", "torn.pt"),
        ("compare a.pt odd.pt", "not the same kind of model"),
        ("export whisper a.pt -o folder", "--whisper"),
        ("export pretrained a.pt -o folder", "--hparams"),
        ("export ggml a.pt -o folder", "a.pt holds no Whisper"),
        ("export ctranslate2 a.pt -o folder", "a.pt holds no Whisper"),
        ("methods averge", "Did you mean 'average'"),
    ],
)
def test_errors(models, capsys, arguments, message):
    torch.save({"x": torch.ones(1)}, "odd.pt")
    Path("torn.pt").write_bytes(Path("a.pt").read_bytes()[:1000])
    assert run(*arguments.split()) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith(f"speechbrain-merge {arguments.split()[0]}: ")
    first, *faults = error.splitlines()
    # several faults have a line each below the first
    assert all(line.startswith("  ") for line in faults)
    assert bool(faults) == first.endswith("faults):")
    assert message in error
    assert not Path("m.safetensors").exists()


def test_wrong_words(capsys):
    for arguments in ([], ["mrge"], ["export", "wav2vec", "a", "-o", "b"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
    assert "usage: speechbrain-merge" in capsys.readouterr().err


def test_inspect(tmp_path, capsys):
    shared = torch.ones(3, 2)
    state = {
        "encoder.layers.0.fc1.weight": torch.zeros(4, 2),
        "encoder.layers.1.fc1.weight": torch.zeros(4, 2, dtype=torch.float16),
        "embed_tokens.weight": shared,
        "proj_out.weight": shared,
        "steps": torch.tensor(3),
    }
    write_weights(tmp_path / "a.safetensors", state)
    path = merge(
        "average",
        [tmp_path / "a.safetensors"] * 2,
        output=tmp_path / "m.safetensors",
    )
    capsys.readouterr()
    assert run("inspect", path) == 0
    out = capsys.readouterr().out
    assert "4 tensors, 23 weights (float32, float16, int64), 80 bytes" in out
    rows = [line.split() for line in out.splitlines()]
    assert ["encoder.feed_forward", "2", "16"] in rows
    assert ["encoder.layers.1.fc1.weight", "[4,", "2]", "float16"] in rows
    assert ["proj_out.weight", "embed_tokens.weight"] in rows
    record = json.loads(out.partition("merged:\n")[2])
    assert record["method"] == "average" and len(record["sources"]) == 2


def test_compare(models, capsys):
    a, b, base = (models[name] for name in ("a", "b", "base"))
    rows = compare("a.pt", "b.pt", "base.pt", layers=True)
    names = [n for n in base if matches(n, "encoder.layers.1.attention")]
    first, second = (
        torch.cat([(each[n] - base[n]).flatten() for n in names]).double()
        for each in (a, b)
    )
    (row,) = [r for r in rows if r.part == "encoder.layers.1.attention"]
    assert row.entries == len(first)
    cosine = torch.nn.functional.cosine_similarity(first, second, dim=0)
    assert row.cosine == pytest.approx(cosine.item(), abs=1e-6)
    distance = 2 * (first - second).norm() / (first.norm() + second.norm())
    assert row.distance == pytest.approx(distance.item(), abs=1e-6)
    conflicts = (first * second < 0).double().mean().item()
    assert row.conflicts == pytest.approx(conflicts, abs=1e-6)
    assert rows[-1].part == "all"
    assert rows[-1].entries == sum(tensor.numel() for tensor in base.values())

    assert run("compare", "a.pt", "a.pt") == 0
    for line in capsys.readouterr().out.splitlines()[1:]:
        assert line.split()[2:] == ["1.0000", "0.0000", "-"]
    assert run("compare", "a.pt", "base.pt", "--base", "base.pt") == 0
    for line in capsys.readouterr().out.splitlines()[1:]:
        assert line.split()[2:] == ["-", "2.0000", "-"]


def test_export_whisper(tmp_path, capsys):
    hub = tiny_whisper(tmp_path / "hub", layers=1)
    whisper = Whisper(hub, hub)
    state = {f"whisper.{n}": t + 1 for n, t in whisper.state_dict().items()}
    path = write_weights(tmp_path / "m.safetensors", state)
    folder = tmp_path / "folder"
    arguments = ["export", "whisper", path, "--whisper", hub, "-o", folder]
    assert run(*arguments) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(folder)
    again = Whisper(str(folder), str(folder))
    for name, tensor in again.model.state_dict().items():
        assert torch.equal(tensor, state[f"whisper.model.{name}"])
    # and from there to whisper.cpp's file
    to_cpp = ["export", "ggml", folder, "-o", tmp_path / "cpp"]
    assert run(*to_cpp) == 0
    assert (tmp_path / "cpp" / "ggml-model.bin").is_file()
    # in half of the bytes, in pieces, with what a person says of it
    merged = tmp_path / "merged.safetensors"
    assert run("merge", "average", path, path, "-o", merged, "--quiet") == 0
    about = tmp_path / "about.yaml"
    about.write_text("{license: mit, language: en}")
    more = ["--dtype", "float16", "--max-shard-size", "20KB", "--card", about]
    arguments = ["export", "whisper", merged, *arguments[3:-1], folder]
    assert run(*arguments, *more) == 0
    card = (folder / "README.md").read_text()
    assert 'license: "mit"' in card and "by `average`" in card
    assert str(tmp_path) not in card
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    with open_weights(folder) as weights:
        assert {weights.dtype(n) for n in weights} == {torch.float16}
    assert run("export", "ggml", folder, "-o", tmp_path / "cpp") == 0
    assert (tmp_path / "cpp" / "README.md").read_text() == card
    # not over something that is no export
    assert run(*arguments[:-1], hub) == 2
    assert "not written there by this package" in capsys.readouterr().err


def test_methods(capsys):
    assert run("methods") == 0
    out = capsys.readouterr().out
    for name in available():
        assert f"\n{name} " in out
    assert run("methods", "ties") == 0
    out = capsys.readouterr().out
    assert out.startswith("ties(density=") and "density : float" in out


def test_what_a_plan_does_not_keep_leaves_no_trace(models):
    """No path in the record of a merge, and no folder after a kill."""
    texts = []
    for _ in range(2):
        shutil.rmtree("out", ignore_errors=True)
        # the base is not kept either
        assert run("merge", plan("base: base.pt", "base: halves")) == 0
        texts.append(provenance("out/final.safetensors"))
        for record in (texts[-1], *texts[-1]["chain"]):
            record.pop("created")
        # the hash of a merge is that of its record too, and of its time
        texts[-1]["chain"] = [
            {key: row[key] for key in row if key != "digest"}
            for row in texts[-1]["chain"]
        ]
        made = [texts[-1]["sources"][0], texts[-1]["base"]]
        assert made[0]["digest"] == made[1]["digest"]
        for source in made:
            source.pop("digest")
    assert texts[0] == texts[1]
    assert texts[0]["sources"][0]["path"] is None
    assert texts[0]["base"]["path"] is None

    Path("out/final.safetensors").unlink()
    killed = (
        "import os, signal\nfrom speechbrain_merge.command import plan_run\n"
        "from speechbrain_merge.cli import main\n"
        "def kill(*arguments, **options):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "plan_run.merge = kill\nmain(['merge', 'plan.yaml'])\n"
    )
    done = subprocess.run([sys.executable, "-c", killed])
    assert done.returncode == -signal.SIGKILL
    left = {path.name for path in Path("out").iterdir()}
    assert len(left) == 3, left  # two outputs, and remains
    assert run("merge", "plan.yaml") == 0
    assert sorted(os.listdir("out")) == [
        "apart.safetensors",
        "final.safetensors",
        "kept.safetensors",
    ]
