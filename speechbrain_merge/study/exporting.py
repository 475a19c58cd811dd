"""Models of a study as folders that other programs load, each with a card.

They are written by the run's own ``export``, with a card, to which `card` adds
what the Hub wants to know::

    exports: [smact]
    card:
        language: en
        license: apache-2.0
        base_model: openai/whisper-tiny.en

A model is exported again where its weights, the code of ``export``, a file that
this names, or what the recipe decodes with have changed.
A card follows the results: with another test set, the model is exported again.
A card that a person edited stays, and a warning says so.

Authors
 * The speechbrain_merge authors 2026
"""

import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from speechbrain.utils.distributed import run_on_main
from speechbrain.utils.logger import get_logger
from speechbrain_merge.evaluation.bootstrap import confidence_interval
from speechbrain_merge.export.publishing import published
from speechbrain_merge.lineage import CARD
from speechbrain_merge.records.contents import contents_of
from speechbrain_merge.records.file_hashes import content_of
from speechbrain_merge.records.fingerprint import fingerprint
from speechbrain_merge.records.once import known_record, once
from speechbrain_merge.records.own_code import own_code, plain_value
from speechbrain_merge.records.ownership import ChangedFolder, changed_files
from speechbrain_merge.report import merge_card
from speechbrain_merge.report.leaderboard import (
    FILE as LEADERBOARD_FILE,
    leaderboard_yaml,
)
from speechbrain_merge.study.comparison import Scores
from speechbrain_merge.study.made import checked
from speechbrain_merge.study.merged import base_of, members_of
from speechbrain_merge.study.results import flat
from speechbrain_merge.study.testing import speakers
from speechbrain_merge.weights import Weights, open_weights

logger = get_logger(__name__)


def export_models(study, makers: Mapping, results: Mapping) -> None:
    """Exports models with a card each, those of the first seed.

    Arguments
    ---------
    study : Study
        The study.
    makers : dict
        Seed to Maker.
    results : dict
        See ``study/results.py``.

    Raises
    ------
    ChangedFolder
        Where an exported file, other than the card, is not as the study wrote
        it.
    """
    maker = makers[results["seeds"][0]]
    for name in study.exports:
        if name not in maker.made:
            continue
        export = maker.run.export
        if export is None:
            raise ValueError(
                f"`exports` names '{name}', and the Run that `build` gives has "
                "no `export`."
            )
        made = maker.made[name]
        folder = study.folder / "exported" / name
        record = study.folder / "exported" / f"{name}.json"
        texts = _card(study, maker, name, results, folder)
        decides = {
            "weights": made.digest,
            "texts": fingerprint(texts),
            "decoding": maker.decoding,
            "export": own_code([export], text_of=_value_or_file),
        }
        known = run_on_main(known_record, args=[record])
        if known and run_on_main(changed_files, args=[folder, [CARD]]):
            before = known["settings"].get("texts")
            if before not in (None, decides["texts"]):
                logger.warning(
                    f"{folder / CARD} was edited since it was written: it "
                    "stays, and does not tell what the results are now."
                )
            decides["texts"] = before

        def work():
            # in one step: an export with other files in it is not replaced
            run_on_main(export, args=[made.verified(name), folder, texts])
            node = maker.nodes[name]
            if node.kind == "merge" and node.method.merges_adapters:
                run_on_main(_export_adapter, args=[maker, node, folder])
            return {
                "folder": f"exported/{name}",
                "files": run_on_main(_files_of, args=[folder]),
                "contents": run_on_main(_contents_of, args=[folder]),
            }

        def is_there(outcome):
            # earlier versions did not write down which files there are
            files = outcome.get("files", [])
            if not folder.is_dir() or not set(files) <= set(_files_of(folder)):
                return False
            _check_unchanged(folder, outcome.get("contents", {}), record)
            return True

        once(record, decides, work, again=True, is_there=is_there)


def _value_or_file(key, value, is_state):
    """What tells a value of the run's `export`: that of a file is its content."""
    if isinstance(value, (str, Path)) and os.path.isfile(value):
        return content_of(value)
    return plain_value(key, value, is_state)


def _files_of(folder):
    """The files of an exported model, and of its adapter beside it."""
    beside = folder.parent.glob(f"{folder.name}-adapter.*")
    return sorted(
        str(path.relative_to(folder.parent))
        for place in (folder, *beside)
        for path in (place, *place.rglob("*"))
        if path.is_file()
    )


def _contents_of(folder):
    """The hashes of these files, but for that of the card."""
    files = [name for name in _files_of(folder) if Path(name).name != CARD]
    found = contents_of(folder.parent / name for name in files)
    return dict(zip(files, found.values()))


def _check_unchanged(folder, known, record):
    """Raises where exported files are not as they were written."""
    found = _contents_of(folder)
    for name, content in known.items():
        if found.get(name, content) != content:
            raise ChangedFolder(
                f"{folder.parent / name} has the SHA-256 {found[name]}, and "
                f"{content} is on record in {record}: it was changed since the "
                f"study exported it. Remove {folder} to have it exported "
                f"again, or take '{folder.name}' out of `exports` to keep it "
                "as it is."
            )


def _export_adapter(maker, node, folder):
    """The merged adapter beside the model, for PEFT and for SpeechBrain."""
    about = maker.made[node.name].about
    parameters = {k: v for k, v in about["method"].items() if k != "name"}
    method = type(node.method)(**parameters)
    members = {member.name: member for member in members_of(maker, node)}
    chosen = [members[name] for name in about["selected"]]
    modules = list(maker.pool_of(maker.run).modules)
    with ExitStack() as stack:
        opened = [
            stack.enter_context(
                _of_module(checked(member), modules, "adapted_model.")
            )
            for member in chosen
        ]
        base = stack.enter_context(_of_module(base_of(maker, node), modules))
        for form, end in (("peft", "peft"), ("speechbrain", "safetensors")):
            method.write_adapter(
                opened,
                folder.with_name(f"{folder.name}-adapter.{end}"),
                form,
                base=base,
                labels=[member.name for member in chosen],
                progress=False,
            )


def _of_module(path, modules, start=""):
    """Weights by their names in the module, where there is only one.

    So PEFT knows them, and, with the start, SpeechBrain's AdaptedModel.
    """
    weights = open_weights(path)
    if len(modules) > 1:
        return weights
    names = {name: name.removeprefix(f"{modules[0]}.") for name in weights}
    return Weights(
        {start + name: weights.entry(old) for old, name in names.items()},
        weights.label,
        weights.metadata,
        on_close=weights.close,
    )


def _card(study, maker, name, results, folder):
    """The card of an exported model, a merge, and what goes with it.

    It is a model of the first seed, so its results are those of that seed.
    """
    with open_weights(maker.made[name].path) as weights:
        metadata = published(weights.metadata, folder)
    if "merge" not in metadata:
        return {}
    seed, mode = results["seeds"][0], results["modes"][0]
    shown = flat(results, mode, [seed])
    [row] = [row for row in results["rows"] if row["name"] == name] or [None]
    own = [
        each for each in shown["rows"] if row and each["name"] == row["title"]
    ]
    if not own:  # it was not tested on all sets
        card = merge_card(metadata, title=name, about=study.card)
        return {"README.md": card}
    scores = Scores(
        study.folder,
        {**results, "seeds": [seed]},
        speakers(maker.run.test_sets),
    )
    for domain, counts in own[0]["sets"].items():
        drawn = confidence_interval(
            scores.of(row, mode, domain), scores.blocks([domain])
        )
        counts["interval"] = {
            "low": drawn.low,
            "high": drawn.high,
            "level": 0.95,
        }
    title = own[0]["name"]
    texts = {"README.md": merge_card(metadata, shown, title, title, study.card)}
    sets = study.card.get("leaderboard")
    if sets:
        texts[LEADERBOARD_FILE] = leaderboard_yaml(shown, title, sets)
    return texts
