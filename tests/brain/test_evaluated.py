"""The logs say what is evaluated."""

from averaging_recipe import TEST_SET, Averaging, evaluate, trained

from speechbrain_merge import MergeStage, merge
from speechbrain_merge.brain.evaluated import described
from speechbrain_merge.search import GreedySearch


def test_the_logs_say_what_is_evaluated(tmp_path, caplog):
    brain = trained(tmp_path, Averaging)
    evaluate(brain)
    log = tmp_path / "train_log.txt"
    assert not log.exists()  # as without merging
    caplog.clear()
    search = GreedySearch()
    stage = MergeStage("average", [brain.pool], search=search, name="greedy")
    result = brain.merge(stage, TEST_SET)
    evaluate(brain)
    members = " + ".join(result.selected)
    (line,) = log.read_text().splitlines()
    assert line.startswith(f"evaluated: merge 'greedy' (average) of {members}")
    assert line.endswith(f", dev error rate: {result.value:.2f} %")
    assert f"evaluated: merge 'greedy' (average) of {members}" in caplog.text
    brain.merge(MergeStage("average", [brain.pool], name="all"))
    evaluate(brain)
    best = brain.pool.candidates()[1]
    brain.use_weights(best)
    evaluate(brain)
    brain.use_weights(result.path)
    evaluate(brain)
    brain.use_weights(None)
    evaluate(brain)
    _, all_of_them, one, again, own = log.read_text().splitlines()
    everyone = " + ".join(each.name for each in brain.pool.candidates())
    assert f"merge 'all' (average) of {everyone}, dev error rate: not" in (
        all_of_them
    )
    assert one == f"evaluated: candidate {best.name}, dev WER: {best.score:.4g}"
    assert again == line
    assert own == "evaluated: the recipe's own choice of weights"


def test_files_in_words(tmp_path):
    brain = trained(tmp_path, Averaging)
    first, second, _ = brain.pool.candidates()
    path = tmp_path / "merged.safetensors"
    merge("average", [first.path, second.path], output=path)
    said = described(path)["evaluated"]
    assert said.startswith(f"merge {path} (average) of ")
    assert first.path.stem in said and second.path.stem in said
    assert described(str(first.path)) == {"evaluated": str(first.path)}
    state = brain.modules.state_dict()
    assert described(state) == {"evaluated": "weights in memory"}
