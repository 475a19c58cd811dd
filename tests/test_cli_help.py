"""What the command line says of itself: help, and completion in bash."""

import re
import resource
import shlex
import subprocess
import sys

import pytest

from speechbrain_merge.cli import main
from speechbrain_merge.command.plan import Plan, parse_yaml
from speechbrain_merge.methods import available, create


def help_of(capsys, *command):
    """What a command says of itself."""
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_the_coefficients_in_the_help_are_taken(capsys):
    text = help_of(capsys, "merge")
    examples = re.findall(r"--parameters '(.*?)'", text, re.DOTALL)
    given = [parse_yaml(each, "the help") for each in examples]
    given = [each for each in given if each != {"density": 0.3}]
    assert len(given) == 7
    for parameters in given:
        method = {"method": "layer_scaled", "statistics": "fisher"}.get(
            next(iter(parameters)),
            "average" if "weights" in parameters else "task_arithmetic",
        )
        create(method, **parameters)


def test_the_plan_in_the_help_is_one(capsys, tmp_path, monkeypatch):
    text = help_of(capsys, "merge")
    plan = text[text.index("  stages:") : text.index("  Further keys")]
    monkeypatch.chdir(tmp_path)
    for place in ("results/clean-1/pool", "whisper"):
        (tmp_path / place).mkdir(parents=True)
    for place in ("noisy.safetensors", "whisper/model.safetensors"):
        (tmp_path / place).touch()
    found = Plan(parse_yaml(plan, "the help")["stages"])
    assert found.order == ["clean", "merged"]


def test_help_is_quick():
    command = [sys.executable, "-m", "speechbrain_merge.cli", "merge", "--help"]
    taken = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # the processor's, with the start of Python: others may be at work
        taken.append(
            after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        )
    assert min(taken) < 0.5


def completed(script, line):
    """What bash offers for the last word of a line."""
    words = shlex.split(line) + ([""] if line.endswith(" ") else [])
    program = (
        f"source {script}\n"
        f"COMP_WORDS=({' '.join(map(repr, words))})\n"
        f"COMP_CWORD={len(words) - 1}\n"
        "_speechbrain_merge\n"
        'printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", program],
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_words_are_completed(capsys, tmp_path):
    assert main(["completion"]) == 0
    script = tmp_path / "completion.bash"
    script.write_text(capsys.readouterr().out)
    first = completed(script, "speechbrain-merge ")
    assert {"merge", "evaluate", "study", "--version"} <= set(first)
    assert completed(script, "speechbrain-merge insp") == ["inspect"]
    names = completed(script, "speechbrain-merge methods ")
    assert set(available()) <= set(names)
    assert completed(script, "speechbrain-merge merge tie") == ["ties"]
    line = "speechbrain-merge merge ties a.pt --otherwise "
    assert completed(script, line) == ["average", "base", "first"]
    line = "speechbrain-merge --traceback merge ties --out"
    assert completed(script, line) == ["--output"]
    assert "whisper" in completed(script, "speechbrain-merge export ")
    # a file is left to bash
    assert completed(script, "speechbrain-merge inspect model") == []
