"""Tests of a study's models; nothing is decoded twice.

The errors of one set of weights, on one set, in one mode, are kept under a name
made from all that decides them. Models with the same weights share them,
whatever they are called and whichever seed they belong to::

    <folder>/scores/<set>-<key>.jsonl    the errors of each utterance
                    <set>-<key>.json     the counts, and what decided them
                    <set>-<key>.txt      alignments

Authors
 * The speechbrain_merge authors 2026
"""

import json
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from speechbrain.utils.distributed import run_on_main
from speechbrain.utils.logger import get_logger
from speechbrain_merge.brain.combinations import collect_posteriors, combine
from speechbrain_merge.brain.decisive import data_settings
from speechbrain_merge.brain.domains import (
    alignments_text,
    evaluate_set,
    rates_of,
)
from speechbrain_merge.evaluation import read_scores, write_scores
from speechbrain_merge.pool import Candidate
from speechbrain_merge.pool.coverage import check_tested
from speechbrain_merge.records.errors import RecordError
from speechbrain_merge.records.file_hashes import content_of
from speechbrain_merge.records.files import write_whole
from speechbrain_merge.records.once import known_record
from speechbrain_merge.records.paths import inside
from speechbrain_merge.records.written_check import read_written, with_check
from speechbrain_merge.study.counted import KEYS, counted
from speechbrain_merge.study.made import digest_of, digest_of_rows
from speechbrain_merge.study.making import Maker
from speechbrain_merge.study.sequences import Sequence
from speechbrain_merge.weights import open_weights

logger = get_logger(__name__)

UTTERANCES = "utterances"
"""The entry of the record of a test with the hash of its ``.jsonl``."""

USUAL = "usual"
"""The mode of a study that names none."""


class Tester:
    """Tests the models of one seed.

    Arguments
    ---------
    study : Study
        The study.
    maker : Maker
        Has made the models that are tested.
    """

    def __init__(self, study, maker: Maker):
        self.study, self.maker = study, maker
        self.folder = study.folder / "scores"
        self._sets, self._posteriors = {}, {}
        self._told = False

    def test(self, name: str) -> dict:
        """Tests a model on its sets, in every mode.

        Arguments
        ---------
        name : str
            A model that is made.

        Returns
        -------
        dict
            Mode to set to its counts, with the file of the ``scores`` of each
            utterance, relative to the study's folder.
        """
        node = self.maker.nodes[name]
        sets = self.study.tests if node.tests is None else node.tests
        return {
            mode: {
                one: self._test_one(node, one, {**settings, **node.test_with})
                for one in sets
            }
            for mode, settings in self.study.modes.items()
        }

    def stages(self, sequence: Sequence, sets: list) -> list[dict]:
        """The counts of a sequence of models, from its start on.

        Arguments
        ---------
        sequence : Sequence
            See ``study/sequences.py``.
        sets : list of list of str
            The test sets of the start and of each model.

        Returns
        -------
        list of dict
            For the start and each model: set to its counts, in the first mode.
        """
        nodes = self.maker.nodes
        settings = next(iter(self.study.modes.values()))
        return [
            {
                test: self._test_one(
                    nodes[one], test, {**settings, **nodes[one].test_with}
                )
                for test in tests
            }
            for one, tests in zip((sequence.start, *sequence.models), sets)
        ]

    def _test_one(self, node, test, settings):
        """The counts of one model on one set, decoded only if unknown."""
        if node.kind == "by_domain":
            other = self.maker.nodes[node.model_for(test)]
            settings = {**settings, **other.test_with}
            return self._test_one(other, test, settings)
        about = {
            "weights": self.maker.made[node.name].digest,
            "set": self._set_digest(test),
            "settings": settings,
            "yaml": self._yaml_digest(),
        }
        before = json.loads(json.dumps(about, default=str))
        # the set's digest has prepared the run that this is known of
        about = {**before, "decoding": self.maker.decoding}
        stem = _stem(test, about)
        record = self.folder / f"{stem}.json"
        known = run_on_main(_known_scores, args=[record, about])
        if known is None:
            earlier = self.folder / f"{_stem(test, before)}.json"
            if run_on_main(earlier.is_file):
                self._tell_earlier()
            known = self._decode(node, test, settings, about, record)
        counts = counted(known["outcome"], f"{record}, key 'outcome'")
        return {**counts, "scores": f"scores/{stem}.jsonl"}

    def _tell_earlier(self):
        """Says once that the tests of an earlier version are not used."""
        if not self._told:
            logger.info(
                f"Seed {self.maker.seed}: sets that an earlier version tested "
                "are decoded again. It did not write down what was in the "
                "files that decoding reads."
            )
        self._told = True

    def _decode(self, node, test, settings, about, record):
        """Decodes one set, and writes what was found; the record last."""
        brain, run = self.maker.run.brain, self.maker.run
        test_set = run.test_sets[test]
        logger.info(f"Seed {self.maker.seed}: {node.name} on {test}")

        def evaluate():
            return evaluate_set(
                brain,
                test_set,
                run.loader_kwargs("test"),
                f"{node.name} on {test}",
                self.study.metric,
                self.study.mode,
                self.study.tracker,
                settings,
            )

        run_on_main(
            self.folder.mkdir, kwargs={"parents": True, "exist_ok": True}
        )
        if node.kind == "combine":
            systems = [
                self._posteriors_of(name, test, settings, evaluate)
                for name in node.members
            ]
            scores = combine(node.how, systems, test_set.data, brain.words_of)
        else:
            self._use(node.name)
            scores = evaluate()
            metric = getattr(brain, self.study.tracker)
            run_on_main(
                write_whole,
                args=[record.with_suffix(".txt"), alignments_text(metric)],
            )
        found = {"settings": about, "outcome": rates_of(scores)}
        utterances = record.with_suffix(".jsonl")
        run_on_main(write_scores, args=[utterances, scores])
        found[UTTERANCES] = run_on_main(content_of, args=[utterances])
        text = json.dumps(with_check(found), indent=2, ensure_ascii=False)
        run_on_main(write_whole, args=[record, text + "\n"])
        return found

    def _posteriors_of(self, name, test, settings, evaluate):
        """The posteriors of a model; kept for its next combination."""
        key = (self.maker.made[name].digest, test, digest_of(settings))
        if key not in self._posteriors:
            if any(known[1:] != key[1:] for known in self._posteriors):
                self._posteriors.clear()  # those of another set
            brain = self.maker.run.brain
            self._use(name)
            self._posteriors[key] = collect_posteriors(brain, evaluate)
        return self._posteriors[key]

    def _use(self, name):
        """Has the Brain test a model, by the weights that its scores go by."""
        brain, made = self.maker.run.brain, self.maker.made[name]
        with open_weights(made.path) as weights:
            check_tested(
                brain, weights.names(), f"Model '{name}' ({made.path})"
            )
        brain.use_weights(
            Candidate(name, made.path, name, known_digest=made.digest)
        )

    def _set_digest(self, test):
        """A hash of the rows of a test set, and of what is made of them."""
        if test not in self._sets:
            data = self.maker.run.test_sets[test]
            found = digest_of_rows(data, self.study.folder)
            if found is None:
                raise ValueError(
                    f"The test set '{test}' has no rows to be known by: "
                    "expected a DynamicItemDataset."
                )
            self._sets[test] = digest_of(
                [
                    found,
                    data_settings(
                        self.maker.run.brain,
                        data,
                        **self.maker.run.loader_kwargs("test"),
                    ),
                ]
            )
        return self._sets[test]

    def _yaml_digest(self):
        """A hash of the YAML that tests go by, without seed and places."""
        if None not in self._sets:
            study = self.study
            training = study.trainings[study.evaluate_with]
            values = {
                "seed": 0,
                "output_folder": str(study.folder / "evaluate"),
                "run": "evaluate",
                "domains": [],
                "tests": [],
            }
            tree = training.resolved(
                training.overrides(values, {}), study.folder
            )
            # Its files count by their content, wherever they are
            data = tree.get("data_folder")
            self._sets[None] = digest_of(
                _without_data(tree, data) if isinstance(data, str) else tree
            )
        return self._sets[None]


def _known_scores(record, about):
    """The record of a test, where there is one with the errors it stands for.

    Raises where one of its files was changed since it was written, or has
    another's place.
    """
    path = record.with_suffix(".jsonl")
    delete = f"Delete it and {path.name} beside it to decode the set again."
    known = known_record(record, delete)
    if known is None or not path.is_file():
        return None
    if known["settings"] != about:
        raise RecordError(
            f"{record} is the record of another test: its weights, set or "
            f"settings are not those that its name stands for. {delete}"
        )
    if known.get(UTTERANCES) not in (None, content_of(path)):
        raise RecordError(
            f"{path} is not as it was written: it does not have the hash that "
            f"{record.name} beside it holds. Delete both to decode the set "
            "again."
        )
    return known


def _without_data(value, folder):
    """Plain data whose paths in the data folder no longer name the folder."""
    if isinstance(value, str):
        path = os.path.join(value, "")
        root = os.path.join(folder, "")
        return f"<data>/{path[len(root) :]}" if path.startswith(root) else value
    if isinstance(value, Mapping):
        return {key: _without_data(each, folder) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_data(each, folder) for each in value]
    return value


def speakers(test_sets: Mapping) -> dict:
    """The speaker of each utterance, where the data name speakers.

    Arguments
    ---------
    test_sets : dict
        Set to dataset.

    Returns
    -------
    dict
        Set to a dict from utterance to speaker; sets without speakers are not
        in it.
    """
    found = {}
    for name, data in test_sets.items():
        rows = getattr(data, "data", {})
        for column in ("spk_id", "speaker", "spk"):
            if rows and all(row.get(column) for row in rows.values()):
                found[name] = {
                    utterance: str(row[column])
                    for utterance, row in rows.items()
                }
                break
    return found


def scores_path(folder, counts: Mapping) -> Path:
    """The file with the errors of each utterance.

    Arguments
    ---------
    folder : str or Path
        The study's folder.
    counts : dict
        Of one set, as ``Tester.test`` gives them.

    Returns
    -------
    Path

    Raises
    ------
    RecordError
        Where the name leads out of the study: ``results.json`` may be a
        stranger's.
    """
    where = f"{folder}, key 'scores' of the counts of a set"
    path = inside(folder, counts.get("scores"), where)
    if not path.resolve().is_relative_to(Path(folder).resolve()):
        raise RecordError(
            f"{path} is a link that leads out of the study. Put the file "
            "itself there."
        )
    return path


def scores_of(
    folder, counts: Mapping, read: Callable[..., list] = read_scores
) -> list:
    """The errors of each utterance, which add up to the counts of the set.

    Arguments
    ---------
    folder : str or Path
        The study's folder.
    counts : dict
        Of one set, as ``Tester.test`` gives them.
    read : callable
        Takes the file; gives what ``read_scores`` gives.

    Returns
    -------
    list of UtteranceScore

    Raises
    ------
    RecordError
        Where they add up to other counts: a row was lost, or one of the two
        files is of another run.
    """
    path = scores_path(folder, counts)
    _check_content(path)
    scores = read(path)
    found = rates_of(scores)
    for key in KEYS:
        if key in counts and not math.isclose(
            found[key], counts[key], rel_tol=1e-9
        ):
            raise RecordError(
                f"{path}: the utterances add up to {found[key]:g} {key}, and "
                f"the results of the study have {counts[key]:g}. Remove the "
                "file and the .json beside it, and run the study again: the "
                "set is then scored anew."
            )
    return scores


def _check_content(path):
    """Raises where the errors of utterances were changed since.

    Of a study that was copied in part, the record beside may be missing.
    """
    record = path.with_suffix(".json")
    if not record.is_file():
        return
    known = read_written(record)
    known = known.get(UTTERANCES) if isinstance(known, dict) else None
    if known is not None and known != content_of(path):
        raise RecordError(
            f"{path} is not as it was written. Remove it and the .json beside "
            "it, and run the study again: the set is then scored anew."
        )


def _stem(test, about):
    """The name of the files of a test, without their endings."""
    return f"{_plain(test)}-{digest_of(about)[:16]}"


def _plain(name):
    """A name that can begin the name of a file."""
    return re.sub(r"[^\w.-]", "_", name)[:60]
