"""``speechbrain-merge evaluate``: error rates of any weights, by a recipe.

The recipe's ``train.py`` is imported, not run, and its function ``build``
prepares the Brain and the test sets, as for a study
(``speechbrain_merge.brain.run``). A script that would train when it is
imported is refused before that.

Authors
 * The speechbrain_merge authors 2026
"""

import ast
import importlib.util
import os
import sys
from contextlib import contextmanager, suppress
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Optional

import yaml
from hyperpyyaml import resolve_references

import speechbrain as sb
from speechbrain_merge.brain.domains import evaluate_set, rates_of
from speechbrain_merge.brain.normalisers import without_statistics
from speechbrain_merge.brain.run import Run
from speechbrain_merge.command.tables import print_table
from speechbrain_merge.evaluation import confidence_interval
from speechbrain_merge.pool.coverage import check_tested
from speechbrain_merge.pool.half_written import has_whole_checkpoint
from speechbrain_merge.records.errors import RecordError, shown
from speechbrain_merge.records.reading import (
    check_nesting,
    check_yaml,
    read_text,
)
from speechbrain_merge.study.comparison import FEWEST_SPEAKERS
from speechbrain_merge.study.testing import speakers
from speechbrain_merge.weights import open_weights
from speechbrain_merge.weights.hub import local_source

ADD_BUILD = (
    "`evaluate` needs a function `build(hparams_file, overrides, run_opts)` "
    "in it that gives a speechbrain_merge.Run with the Brain and its "
    "test_sets: add it as docs/studies.md shows"
)


YAML_TEXT, YAML_NULL = "tag:yaml.org,2002:str", "tag:yaml.org,2002:null"


def run(options) -> dict:
    """Evaluates weights on the test sets of a recipe."""
    script, hparams_file = Path(options.train), Path(options.hparams)
    check_script(script)
    if not hparams_file.is_file():
        raise ValueError(
            f"{hparams_file} is not there: give the recipe's YAML."
        )
    weights = local_source(options.weights)
    with open_weights(weights) as opened:
        names = opened.names()
    if not names:
        raise ValueError(f"{weights} has no weights in it.")
    _, run_opts, overrides = sb.parse_arguments(
        [str(hparams_file), *options.overrides]
    )
    _check_overrides(hparams_file, overrides)
    build = import_build(script)
    with _nothing_left_of_faults(output_folder(hparams_file, overrides)):
        prepared = build(str(hparams_file), overrides, run_opts)
        _check_run(prepared, script, options.set)
        check_tested(prepared.brain, names, str(options.weights))
        _check_statistics(prepared.brain, names, hparams_file)
        prepared.brain.use_weights(weights)
    brain, sets, found = prepared.brain, prepared.test_sets, {}
    for name in options.set or sets:
        scores = evaluate_set(
            brain,
            sets[name],
            prepared.loader_kwargs("test"),
            name,
            tracker=options.tracker or f"{options.metric.lower()}_metric",
            **_checkpoint_key(brain, options.metric),
        )
        blocks = speakers({name: sets[name]}).get(name)
        if blocks is not None and len(set(blocks.values())) < FEWEST_SPEAKERS:
            blocks = None
        interval = confidence_interval(scores, blocks)
        counts = rates_of(scores)
        found[name] = {
            options.metric.lower(): counts.pop("wer"),
            "low": interval.low,
            "high": interval.high,
            "drawn": "utterances" if blocks is None else "speakers",
            **counts,
        }
    return {
        "weights": str(options.weights),
        "metric": options.metric,
        "sets": found,
    }


def _check_statistics(brain, names, hparams_file):
    """Refuses normalisers whose statistics a checkpoint was to bring."""
    checkpointer = getattr(brain, "checkpointer", None)
    if checkpointer is not None and has_whole_checkpoint(checkpointer):
        return
    for each in without_statistics(brain, names):
        where = f"in the folder that {hparams_file} names"
        advice = "Give the folders of the training, as its command line did."
        for folder, reason in getattr(checkpointer, "passed_over", {}).items():
            where, advice = f"but {folder}: {reason}", "Copy that again."
        raise ValueError(
            f"The Brain's module {each} has no statistics, and there is no "
            f"checkpoint to load them from {where}. The error rates would be "
            f"of other features. {advice}"
        )


def _check_run(prepared, script, asked):
    """Refuses a Run that has not what is asked of it."""
    if not isinstance(prepared, Run):
        raise ValueError(
            f"{script}: `build` gives a {type(prepared).__name__}: {ADD_BUILD}."
        )
    sets = prepared.test_sets
    unknown = [name for name in asked if name not in sets]
    if unknown:
        raise ValueError(
            f"--set {', '.join(unknown)}: there is no such test set. "
            f"{script} has: {', '.join(sets) or 'none'}."
        )
    if not sets:
        raise ValueError(f"{script}: the Run that `build` gives has no sets.")
    if not hasattr(prepared.brain, "use_weights"):
        raise ValueError(
            f"{script}: the Brain that `build` gives is a "
            f"{type(prepared.brain).__name__} without MergeMixin: write "
            "`class ASR(speechbrain_merge.MergeMixin, sb.Brain)`."
        )


def _check_overrides(hparams_file, overrides):
    """Refuses what no recipe can read as values for the keys of its YAML."""
    where = f"what the command line gives for {hparams_file}, {overrides!r},"
    advice = "Write --key value, with each value in one line."
    try:
        check_yaml(overrides, where)
    except RecordError as error:
        raise ValueError(f"{error}. {advice}") from None
    root = yaml.compose(overrides, Loader=yaml.SafeLoader)
    if root is not None and not (
        isinstance(root, yaml.MappingNode)
        and all(key.tag == YAML_TEXT for key, _ in root.value)
    ):
        raise ValueError(f"{where} has a value without a key. {advice}")


def output_folder(hparams_file, overrides) -> Optional[Path]:
    """The output folder of a recipe, without making what its YAML asks for.

    Arguments
    ---------
    hparams_file : str or Path
        The YAML.
    overrides : str or dict
        What is different in it.

    Returns
    -------
    folder : Path or None
        None where it has no ``output_folder``, or cannot be read: the recipe
        says what is wrong with it.

    Raises
    ------
    ValueError
        Where ``output_folder`` is a number, or anything else than a text.

    Example
    -------
    >>> path = getfixture("tmp_path") / "train.yaml"
    >>> _ = path.write_text("{seed: 7, output_folder: !ref results/<seed>}")
    >>> output_folder(path, {"seed": 8}).as_posix()
    'results/8'
    """
    try:
        check_nesting(hparams_file)
        with open(hparams_file, encoding="utf-8") as stream:
            text = resolve_references(stream, overrides or {})
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        folders = [
            value
            for key, value in getattr(root, "value", ())
            if key.value == "output_folder"
        ]
    except Exception:  # a YAML may fail in any way: its recipe says how
        return None
    if not folders or not folders[0].value or folders[0].tag == YAML_NULL:
        return None
    if folders[0].tag != YAML_TEXT:
        kind = folders[0].tag.rpartition(":")[-1]
        raise ValueError(
            f"{hparams_file}, `output_folder` (--output_folder): expected a "
            f"folder, and YAML reads {shown(folders[0].value)} as {kind}. "
            "Write ./ in front of its name."
        )
    return Path(folders[0].value)


@contextmanager
def _nothing_left_of_faults(folder):
    """Takes the empty folders away that came with a fault.

    Only a recipe's ``build`` knows its test sets, and it makes the output
    folder. Folders that were there before stay, and so does all that has a
    file in it: a training may have begun in them meanwhile.
    """
    new = []
    if folder is not None:
        folder = folder.absolute()
        new = [
            each
            for each in (folder, *folder.parents)
            if not os.path.lexists(each)
        ]
    try:
        yield
    except Exception:
        if new:
            _remove_empty(new)
        raise


def _remove_empty(new):
    """Removes folders of which the first holds nothing but empty folders."""
    inside = list(os.walk(new[0], topdown=False))
    links = any(
        os.path.islink(os.path.join(above, name))
        for above, folders, _ in inside
        for name in folders
    )
    if links or any(files for _, _, files in inside):
        return
    for each in (*(above for above, _, _ in inside), *new[1:]):
        with suppress(OSError):  # it has got something in it
            os.rmdir(each)


def check_script(script: Path) -> None:
    """Refuses a script without ``build``, and one that works when imported.

    Arguments
    ---------
    script : Path
        The recipe's ``train.py``. It is read, not run.

    Raises
    ------
    ValueError
        Says what to add, and where.

    Example
    -------
    >>> script = getfixture("tmp_path") / "train.py"
    >>> _ = script.write_text("def build(hparams_file, overrides, run_opts): 0")
    >>> check_script(script)
    >>> _ = script.write_text("import sys\\ntrain(sys.argv)")
    >>> check_script(script)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    ValueError: .../train.py has no function `build`: `evaluate` needs ...
    """
    if not script.is_file():
        raise ValueError(f"{script} is not there: give the recipe's train.py.")
    try:
        tree = ast.parse(read_text(script), str(script))
    except SyntaxError as error:
        raise ValueError(
            f"{script}, line {error.lineno}: not Python: {error.msg}."
        ) from None
    names = set()
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {each.asname or each.name for each in node.names}
        elif isinstance(node, ast.Assign):
            names |= {
                each.id for each in node.targets if isinstance(each, ast.Name)
            }
    if "build" not in names:
        raise ValueError(f"{script} has no function `build`: {ADD_BUILD}.")
    for node in tree.body:
        line = None if _is_guard(node) else _work_of(node)
        if line is not None:
            raise ValueError(
                f"{script}, line {line}: would read the command line or train "
                "when it is imported. Put this below "
                '`if __name__ == "__main__":`.'
            )


def import_build(script: Path):
    """The function ``build`` of a script, imported as a module.

    Arguments
    ---------
    script : Path
        The recipe's ``train.py``, whose folder's modules it may import.

    Returns
    -------
    build : callable
    """
    folder = str(script.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    # Another module may have the name of the script
    name = script.stem if script.stem not in sys.modules else f"{folder}.train"
    loader = SourceFileLoader(name, str(script))
    place = importlib.util.spec_from_file_location(name, script, loader=loader)
    assert place is not None, "there is a loader"
    module = importlib.util.module_from_spec(place)
    # Classes in it are found by their module's name when they are pickled
    sys.modules[name] = module
    loader.exec_module(module)
    return module.build


def show(found):
    """Prints an error rate with its interval for each set."""
    metric = found["metric"].lower()
    print_table(
        [
            "set",
            f"{found['metric']} %",
            "95 % interval",
            "errors",
            "words",
            "utterances",
        ],
        [
            [
                name,
                f"{counts[metric]:.2f}",
                f"{counts['low']:.2f} to {counts['high']:.2f}",
                counts["errors"],
                counts["words"],
                counts["utterances"],
            ]
            for name, counts in found["sets"].items()
        ],
    )


def _checkpoint_key(brain, metric):
    """By what the checkpoint is chosen that normalisers and the like are of.

    The best one by the error rate, or the last one where checkpoints are kept
    by something else, such as the accuracy.
    """
    checkpointer = getattr(brain, "checkpointer", None)
    found = [] if checkpointer is None else checkpointer.list_checkpoints()
    if found and not any(metric in each.meta for each in found):
        return {"metric": "unixtime", "mode": "max"}
    return {"metric": metric}


def _is_guard(node):
    """Whether a statement is ``if __name__ == "__main__":``."""
    return isinstance(node, ast.If) and any(
        isinstance(each, ast.Name) and each.id == "__name__"
        for each in ast.walk(node.test)
    )


def _work_of(node):
    """The line on which a statement of a module trains; None where none."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return None
    for each in ast.walk(node):
        if isinstance(each, ast.Call):
            function = each.func
            name = getattr(function, "attr", getattr(function, "id", ""))
            if name in ("parse_arguments", "fit", "ddp_init_group"):
                return each.lineno
    return None
