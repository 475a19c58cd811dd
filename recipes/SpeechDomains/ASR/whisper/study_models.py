"""What a study does with merged models: measure, compare, export.

Each leaves its result under the results folder, and is not done again when it
is there.

Authors
 * The speechbrain_merge authors 2026
"""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

from records import write_record

from speechbrain_merge.evaluation import macro_bootstrap, read_scores
from speechbrain_merge.export import export_whisper
from speechbrain_merge.report import merge_card
from speechbrain_merge.weights import digest, open_weights


def cost_once(stage, result, folder):
    """What a merge costs, measured in a process of its own, unless it was.

    Arguments
    ---------
    stage : MergeStage
        What was merged.
    result : MergeResult
        What it came to.
    folder : Path
        The results folder.

    Returns
    -------
    dict
        Seconds and peak memory of the merge, and what its search decoded.
    """
    target = folder / "cost" / f"{result.name}.json"
    merged = digest(result.path)
    if target.is_file():
        known = json.loads(target.read_text(encoding="utf-8"))
        if known["merged"] == merged:
            return known["cost"]
    members = {candidate.name: candidate for candidate in stage.chosen()}
    members = [members[name] for name in result.selected]
    parameters = dict(result.method)
    what = {
        "method": parameters.pop("name"),
        "parameters": parameters,
        "experts": [str(member.path) for member in members],
        "labels": [member.name for member in members],
        "base": str(members[0].base) if stage.method.needs_base else None,
        "output": str(target.with_suffix(".safetensors")),
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    script = Path(__file__).with_name("merge_cost.py")
    printed = subprocess.run(
        [sys.executable, str(script), json.dumps(what, default=str)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    cost = json.loads(printed.splitlines()[-1])
    cost["trials"] = len(result.trials)
    cost["decoded_seconds"] = result.savings.get("seconds", 0.0)
    cost["search_seconds"] = round(result.seconds, 1)
    write_record(target, {"merged": merged, "cost": cost})
    return cost


def compare_rows(rows, reference, folder):
    """Adds to each row the difference of its mean WER to that of a reference.

    Arguments
    ---------
    rows : list of dict
        Gets a ``difference``, except the reference itself.
    reference : str
        The name of a row.
    folder : Path
        Where every row's evaluation is.
    """
    scores = {}
    for row in rows:
        done = folder / row["name"] / "evaluated.json"
        place = Path(json.loads(done.read_text(encoding="utf-8"))["scores"])
        scores[row["name"]] = {
            domain: read_scores(place / f"{domain}.jsonl")
            for domain in row["sets"]
        }
    for row in rows:
        if row["name"] != reference:
            found = macro_bootstrap(scores[reference], scores[row["name"]])
            row["difference"] = dataclasses.asdict(found)


def export_once(source, whisper, folder, results):
    """Exports merged weights with a card, unless these are exported."""
    mark, key = folder / "source.json", digest(source)
    if mark.is_file() and json.loads(mark.read_text())["digest"] == key:
        return
    with open_weights(source) as weights:
        card = merge_card(weights.metadata, results, "Merged Whisper")
    texts = {
        "README.md": card,
        mark.name: json.dumps({"source": str(source), "digest": key}) + "\n",
    }
    export_whisper(source, whisper, folder, texts=texts)


def transcribe_one(folder, test_sets):
    """Has SpeechBrain's own interface transcribe a recording, as a check."""
    from speechbrain.inference.ASR import WhisperASR

    domain, data = list(test_sets.items())[-1]
    row = data.data[data.data_ids[len(data.data_ids) // 2]]
    model = WhisperASR.from_hparams(source=str(folder), savedir=str(folder))
    segments = model.transcribe_file(row["wav"])
    words = " ".join(segment.words for segment in segments).strip()
    print(f"\nWhisperASR hears ({domain}): {words}")
    print(f"The speaker says ({domain}): {row['wrd']}")
