"""Merges of merges: a plan of stages in one YAML.

Some merges go in steps: average the runs of each domain first, then merge the
domains by TIES, say. A plan names the steps; what a step makes is an expert
(or the base) of another by the step's name::

    stages:
        clean:
            method: average
            experts: [results/clean-*/pool]
        merged:
            method: ties
            parameters: {density: 0.3}
            experts: [clean, noisy.safetensors]
            base: whisper/model.safetensors
            exclude: embedding
            output: merged.safetensors

Experts are anything that ``read_pool`` reads, or names on the Hugging Face hub
(``openai/whisper-tiny``), which are downloaded; paths are relative to where the
command is run. Without ``base``, it is the one that the experts' pool kept. An
``output`` is in the working folder or in that of the plan, unless
``--anywhere`` is given; one that does not end in ``.safetensors`` is a folder,
made like that of the first expert, which has to be a Hugging Face folder.
``include``, ``exclude`` and ``otherwise`` are those of the method
``restricted``. Experts that do not belong together (fine-tuned from
different weights, other vocabularies beside them, heads that were initialised
apart) are refused unless ``different_bases: true``. ``dtype: float16`` stores
the result in another type than the experts'. Where a method wraps another, its
parameter ``method`` is a name, or ``{method: ties, density: 0.3}``.
A stage that others build on needs no ``output``: its weights are kept beside
the plan's outputs until the plan is done. A stage whose output was made of the
same content in the same way is not made again.

Everything that can be wrong with a plan is found before anything is merged.
Here it is read and checked; ``plan_run`` does the work.

Example
-------
>>> folder = getfixture("tmp_path")
>>> (folder / "a.pt").touch()
>>> final = {
...     "method": "average",
...     "experts": ["mean"],
...     "output": "m.safetensors",
... }
>>> mean = {"method": "average", "experts": [f"{folder}/*.pt"]}
>>> Plan({"final": final, "mean": mean}).order
['mean', 'final']
>>> Plan({"final": {**final, "experts": ["maen"]}, "mean": mean})
Traceback (most recent call last):
...
ValueError: stage 'final': 'maen' is neither a stage nor a file or folder (did you mean 'mean'?).

Authors
 * The speechbrain_merge authors 2026
"""

import difflib
import glob
import os
import re
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from speechbrain_merge.methods import create
from speechbrain_merge.pool.patterns import Patterns
from speechbrain_merge.pool.reading import WEIGHTS_SUFFIXES
from speechbrain_merge.records.errors import RecordError
from speechbrain_merge.records.reading import YAML_LIMIT, check_yaml, read_text
from speechbrain_merge.weights import float_dtype
from speechbrain_merge.weights.hub import local_source

PLAIN_SUFFIXES = (".yaml", ".yml", ".json", ".txt")

MOST_STAGES = 250
MOST_EXPERTS = 1000

KEYS = (
    "method",
    "parameters",
    "experts",
    "base",
    "include",
    "exclude",
    "otherwise",
    "output",
    "different_bases",
    "dtype",
)


def read_plan(path, anywhere: bool = False) -> "Plan":
    """Reads a plan from a YAML file.

    Arguments
    ---------
    path : str or Path
        The file, with ``stages`` in it.
    anywhere : bool
        Whether it may write elsewhere than in the working folder and in that
        of the plan.

    Returns
    -------
    Plan

    Raises
    ------
    ValueError
        When it is not a plan; says where and why.
    """
    content = parse_yaml(read_text(path, YAML_LIMIT), path)
    if not isinstance(content, dict) or list(content) != ["stages"]:
        raise ValueError(
            f"{path}: a plan has one key, `stages`, with a name for each stage."
        )
    plan = Plan(content["stages"], label=str(path))
    if not anywhere:
        plan.check_places([os.getcwd(), os.path.dirname(path) or "."])
    return plan


def parse_yaml(text, label):
    """Plain YAML as plain data.

    Arguments
    ---------
    text : str
        What to read.
    label : str
        What errors call it.

    Returns
    -------
    content : object

    Raises
    ------
    ValueError
        When it is not YAML, or names a key twice.
    """
    try:
        plain = YAML(typ="safe", pure=True)
        # What it stands for is bounded before it is made
        check_yaml(text, str(label))
        return plain.load(text)
    except YAMLError as error:
        problem = getattr(error, "problem", None) or str(error)
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f", line {mark.line + 1}"
        problem = " ".join(problem.split())
        raise ValueError(f"{label}{line}: not YAML: {problem}") from None
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        if isinstance(error, RecordError):
            raise
        # dates that are none, numbers of too many digits
        raise ValueError(f"{label}: not YAML: {error}") from None


class Plan:
    """Stages of a merge, in the order in which they have to run.

    Arguments
    ---------
    stages : dict
        Name to a dict with ``method`` and ``experts``, and optionally
        ``parameters``, ``base``, ``include``, ``exclude``, ``otherwise``,
        ``output``, ``different_bases``, ``dtype``.
    label : str
        What errors call the plan, e.g. its path.

    Raises
    ------
    ValueError
        For everything that can be known to be wrong without reading weights:
        unknown names, cycles, parameters, missing outputs.
    """

    def __init__(self, stages: dict, label: str = ""):
        self.label = f"{label}: " if label else ""
        if not isinstance(stages, dict) or not stages:
            raise ValueError(f"{self.label}`stages` names no stage.")
        if len(stages) > MOST_STAGES:
            raise ValueError(
                f"{self.label}{len(stages)} stages; expected {MOST_STAGES} at "
                "most."
            )
        self.stages = {}
        for name, content in stages.items():
            self.stages[name] = self._checked(str(name), content)
        self.methods = {
            name: self._method(name, stage)
            for name, stage in self.stages.items()
        }
        patterns = Patterns()  # so many names for all of them together
        for name in self.stages:
            for source in self.sources(name):
                self._check_source(name, source, patterns)
        self.order = self._ordered()
        self._check_outputs()
        self.downloaded = {
            source: self._download(name, source)
            for name in self.stages
            for source in self.sources(name)
            if source not in self.stages and _is_on_hub(source)
        }

    def where(self, name):
        """How errors of a stage begin."""
        return f"{self.label}stage '{name}': "

    def sources(self, name):
        """Names and paths that a stage reads."""
        stage = self.stages[name]
        return [
            *map(str, stage["experts"]),
            *([str(stage["base"])] if "base" in stage else []),
        ]

    def check_places(self, folders) -> None:
        """Raises a ValueError where an output is in none of some folders.

        Arguments
        ---------
        folders : list of str
            Where outputs may be.
        """
        allowed = {os.path.realpath(each) for each in folders}
        for name, stage in self.stages.items():
            output = stage.get("output")
            if output is None:
                continue
            real = os.path.realpath(output)
            if not any(
                os.path.commonpath([each, real]) == each for each in allowed
            ):
                raise ValueError(
                    f"{self.where(name)}the output '{output}' is outside of "
                    "the working folder and of that of the plan. If you trust "
                    "the plan, give --anywhere."
                )

    def _checked(self, name, content):
        """One stage as plain data, with the right keys."""
        where = self.where(name)
        if not isinstance(content, dict):
            raise ValueError(f"{where}has no `method` and `experts`.")
        for key in content:
            if key not in KEYS:
                raise ValueError(
                    f"{where}unknown key `{key}`{_hint(str(key), KEYS)}; "
                    f"a stage has {', '.join(KEYS)}."
                )
        for key in ("method", "experts"):
            if not content.get(key):
                raise ValueError(f"{where}has no `{key}`.")
        stage = {key: value for key, value in content.items() if value}
        if isinstance(stage["experts"], str):
            stage["experts"] = [stage["experts"]]
        if not isinstance(stage["experts"], list):
            raise ValueError(
                f"{where}`experts` are a list of files, folders and stages, "
                f"got {stage['experts']!r}."
            )
        if len(stage["experts"]) > MOST_EXPERTS:
            raise ValueError(
                f"{where}{len(stage['experts'])} experts are listed; a stage "
                f"lists {MOST_EXPERTS} at most. Name their pool or folder."
            )
        output = stage.get("output")
        if output is not None and not isinstance(output, (str, Path)):
            raise ValueError(
                f"{where}`output` is a file or folder, got {output!r}."
            )
        other = {*WEIGHTS_SUFFIXES, *PLAIN_SUFFIXES} - {".safetensors"}
        if output is not None and str(output).endswith(tuple(other)):
            raise ValueError(
                f"{where}`output` must end in .safetensors, or be a folder, "
                f"got '{output}'."
            )
        sources = [*map(str, stage["experts"]), str(stage.get("base", ""))]
        if output is not None and os.path.realpath(output) in map(
            os.path.realpath, filter(os.path.exists, sources)
        ):
            raise ValueError(
                f"{where}the output '{output}' is one of the experts, or the "
                "base, which a merge must not replace: name another."
            )
        try:
            float_dtype(stage.get("dtype"))
        except ValueError as error:
            raise ValueError(f"{where}{error}") from None
        return stage

    def _method(self, name, stage):
        """The method of a stage."""
        parameters = stage.get("parameters", {})
        try:
            if not isinstance(parameters, dict) or not all(
                isinstance(word, str) for word in parameters
            ):
                raise ValueError("`parameters` are names and values.")
            method = create(str(stage["method"]), **parameters)
            parts = {
                key: stage[key]
                for key in ("include", "exclude", "otherwise")
                if key in stage
            }
            return (
                create("restricted", method=method, **parts)
                if parts
                else (method)
            )
        except ValueError as error:
            raise ValueError(f"{self.where(name)}{error}") from None

    def _check_source(self, name, source, patterns):
        """A source is a stage, or there on the disk."""
        if source in self.stages or os.path.exists(source):
            return
        if _is_on_hub(source):
            return  # downloaded when all else is right
        try:
            if glob.has_magic(source) and patterns.matching(source):
                return
        except ValueError as error:
            raise ValueError(f"{self.where(name)}{error}") from None
        raise ValueError(
            f"{self.where(name)}'{source}' is neither a stage nor "
            f"a file or folder{_hint(source, self.stages)}."
        )

    def _download(self, name, source):
        """The folder of a model on the hub."""
        try:
            return str(local_source(source))
        except Exception as error:
            # The hub's client raises whatever comes of a missing network
            text = " ".join(str(error).split())
            raise ValueError(
                f"{self.where(name)}'{source}' is neither a stage nor a file "
                "or folder, and no model on the hub could be opened by that "
                f"name ({type(error).__name__}: {text})"
            ) from None

    def _ordered(self):
        """All stages, each after those that it builds on."""
        order: dict = {}
        for first in self.stages:
            way = [first]  # each stage builds on the next one
            while way:
                missing = [
                    source
                    for source in self.sources(way[-1])
                    if source in self.stages and source not in order
                ]
                if not missing:
                    order[way.pop()] = None
                elif missing[0] in way:
                    circle = [*way[way.index(missing[0]) :], missing[0]]
                    raise ValueError(
                        f"{self.label}stages build on each other in a circle: "
                        f"{' -> '.join(circle)}."
                    )
                else:
                    way.append(missing[0])
        return list(order)

    def _check_outputs(self):
        """Raises unless each last stage has an output of its own."""
        used = {source for name in self.stages for source in self.sources(name)}
        owners = {}
        for name, stage in self.stages.items():
            output = stage.get("output")
            if output is None and name not in used:
                raise ValueError(
                    f"{self.where(name)}no other stage builds on "
                    "it, so it needs an `output`."
                )
            if output is not None:
                other = owners.setdefault(os.path.realpath(output), name)
                if other != name:
                    raise ValueError(
                        f"{self.label}stages '{other}' and '{name}' have "
                        f"the same output {output}."
                    )


def _is_on_hub(source):
    """Whether a source can only be a name on the Hugging Face hub."""
    return (
        re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source) is not None
        and not source.endswith((*WEIGHTS_SUFFIXES, *PLAIN_SUFFIXES))
        and not os.path.exists(source)
        and not os.path.exists(os.path.dirname(source))
    )


def _hint(word, known):
    """A question about what may have been meant."""
    close = difflib.get_close_matches(word, [str(each) for each in known], n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""
