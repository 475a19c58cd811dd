"""The page about merge stages names the functions that run, in their order.

Authors
 * The speechbrain_merge authors 2026
"""

import re
import sys
import threading
from pathlib import Path

from averaging_recipe import TEST_SET, Averaging, trained

import speechbrain_merge
from speechbrain_merge import MergeStage
from speechbrain_merge.search import GreedySearch

PACKAGE = Path(speechbrain_merge.__file__).parent
PAGE = PACKAGE.parent / "docs" / "merge_stage.md"
ROW = re.compile(r"^\| `([\w.]+)` \| `([\w/]+\.py)` \|", re.MULTILINE)


def functions_called(work):
    """File and name of each function of the package, as first called."""
    called = {}

    def note(frame, event, argument):
        del argument
        if event == "call":
            file = frame.f_code.co_filename
            if file.startswith(str(PACKAGE)):
                name = Path(file).relative_to(PACKAGE).as_posix()
                called.setdefault((name, frame.f_code.co_name))

    before = sys.getprofile()
    sys.setprofile(note)
    threading.setprofile(note)  # of the threads that merge
    try:
        work()
    finally:
        sys.setprofile(before)
        threading.setprofile(None)
    return list(called)


def test_the_walk_of_a_stage_is_as_the_page_tells_it(tmp_path):
    told = [
        (file, name.rpartition(".")[2])
        for name, file in ROW.findall(PAGE.read_text(encoding="utf-8"))
    ]
    assert len(told) == len(set(told)) > 15
    brain = trained(tmp_path, Averaging)
    stage = MergeStage(
        "average",
        [brain.pool],
        select={"per_run": "all"},
        search=GreedySearch(),
    )
    called = functions_called(lambda: brain.merge(stage, TEST_SET))
    assert [each for each in called if each in told] == told
    assert brain.promised.name == "merged.safetensors"
