"""Every recipe runs by its own command, on a miniature of its corpus."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from listed_recipes import (
    ROOT,
    TABLES,
    checks_of,
    corpus_of,
    failed_checks,
    flags_of,
    rows,
)
from warm_python import python, run_measured

SECONDS = 60  # of one processor, for each recipe

# Recipes for one's own data, for a corpus without a miniature of this kind, and
# such whose outcome is looked into: tests of their own run all of their YAMLs
ELSEWHERE = {
    "SpeechDomains": ["test_study", "test_wav2vec2_attention"],
    "ESC50": ["test_esc50"],
    "CL-MASR": ["test_cl_masr"],
}
RUN = [row for row in rows() if row["Dataset"] not in ELSEWHERE]


@pytest.mark.parametrize("table", TABLES, ids=lambda path: path.stem)
def test_every_corpus_has_a_miniature(table):
    if table.stem in ELSEWHERE:
        for name in ELSEWHERE[table.stem]:
            assert (Path(__file__).parent / f"{name}.py").is_file()
    else:
        name = table.stem.lower().replace("-", "_")
        corpus = corpus_of(table.stem)
        assert corpus is not None, f"tests/corpora/{name}.py is missing"
        assert callable(corpus.make)


@pytest.fixture(scope="module")
def miniature(tmp_path_factory):
    """Corpus to the folder that stands for ``tests/tmp``, made when needed."""
    made = {}

    def of(corpus):
        if corpus not in made:
            made[corpus] = tmp_path_factory.mktemp(corpus.lower())
            corpus_of(corpus).make(made[corpus])
        return made[corpus]

    return of


@pytest.mark.parametrize("row", RUN, ids=lambda row: row["Hparam_file"])
def test_a_listed_recipe_runs(row, miniature):
    flags, output = flags_of(row, miniature(row["Dataset"]))
    # each script at least once as a user runs it
    first = next(r for r in RUN if r["Script_file"] == row["Script_file"])
    command = sys.executable if row is first else python()
    script = ROOT / row["Script_file"]
    yaml = (ROOT / row["Hparam_file"]).relative_to(script.parent)
    _, used = run_measured(
        [command, script.name, str(yaml), *flags]
        + ["--device=cpu", "--noprogressbar"],
        cwd=script.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        timeout=10 * SECONDS,
    )
    assert failed_checks(row, output) == []
    check = getattr(corpus_of(row["Dataset"]), "check", None)
    if check is not None:
        check(row, output)
    print(f"{row['Hparam_file']}: {used:.1f} s of one processor")
    assert used < SECONDS
    merged = output / "merge" / "cosine" / "merged.safetensors"
    if merged.is_file():
        written = (output / "cosine" / "wer_test-clean.txt").read_text()
        assert f"%WER {evaluated(script, yaml, flags, merged):.2f} " in written


def evaluated(script, yaml, flags, weights):
    """The error rate that the command finds, by the recipe's `build`."""
    done = subprocess.run(
        [python(), "-m", "speechbrain_merge", "evaluate"]
        + [script.name, str(yaml), *flags, "--weights", str(weights)]
        + ["--set", "test-clean", "--json", "--device=cpu", "--noprogressbar"],
        cwd=script.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=10 * SECONDS,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return json.loads(done.stdout)["sets"]["test-clean"]["wer"]


def test_checks_that_fail_are_told(tmp_path):
    (tmp_path / "train_log.txt").write_text(
        "epoch: 1 - train loss: 9.00\nepoch: 2 - train loss: 3.50e+00\n"
    )
    checks = "file_exists=[train_log.txt,env.log] "
    checks += "performance_check=[train_log.txt, train loss, <3.5, epoch: 2]"
    assert failed_checks({"test_debug_checks": checks}, tmp_path) == [
        "env.log is missing",
        "train_log.txt, epoch: 2: train loss is 3.50e+00, not <3.5",
    ]
    checks = "performance_check=[train_log.txt, WER, <=100, epoch: 2]"
    assert failed_checks({"test_debug_checks": checks}, tmp_path) == [
        "train_log.txt: no 'WER' in a line with 'epoch: 2'"
    ]
    checks = checks.replace("WER", "train loss").replace("<=100", "<=3.5")
    assert failed_checks({"test_debug_checks": checks}, tmp_path) == []
    with pytest.raises(ValueError, match="file_exist"):
        checks_of("file_exist=[train_log.txt]")
