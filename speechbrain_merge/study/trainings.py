"""How a study trains: a YAML of the recipe, and what is different in it.

A training names the YAML, and overrides that all its models share::

    trainings:
        expert:
            hparams: hparams/train.yaml
            with: {number_of_epochs: 2}
            keys: {domains: train_splits}

The study itself sets the seed, the folder, the domains and the start of each
model. It does so by keys of the YAML, which have these names unless ``keys``
says otherwise; a key that the YAML does not have is left out:

===============  ==================  =====================================
what             key of the YAML     value
===============  ==================  =====================================
seed             ``seed``            the seed of the model
output_folder    ``output_folder``   the folder of the model
run              ``run_name``        the name of the model
domains          ``domains``         list of the domains it is trained on
tests            ``test_domains``    list of the test sets
start_from       ``start_from``      a file of weights
guide            ``guide``           a file of weights
teachers         ``teachers``        list of files of weights
===============  ==================  =====================================

A YAML without a key for domains says with ``{domain}`` in ``with`` what is
different for each, e.g. ``with: {train_csv: data/{domain}.csv}``. Where the data
of a domain are, a YAML may say by ``domain_files``; see
``study/domain_files.py``.

Authors
 * The speechbrain_merge authors 2026
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Callable, Optional

import yaml
from hyperpyyaml import resolve_references
from ruamel.yaml.error import YAMLError

from speechbrain_merge.records.reading import (
    YAML_LIMIT,
    check_yaml,
    parse_yaml,
    read_text,
)
from speechbrain_merge.study.axes import DOMAIN, fill

WORDS = {
    "seed": "seed",
    "output_folder": "output_folder",
    "run": "run_name",
    "domains": "domains",
    "tests": "test_domains",
    "start_from": "start_from",
    "guide": "guide",
    "teachers": "teachers",
}

FILES = "domain_files"
"""The key of a YAML that says where the data of a domain are."""

STUDY = "<study>"
"""Stands for the study's folder, which may be moved."""


class Training:
    """One way to train a model.

    Arguments
    ---------
    name : str
        Its name in the study.
    hparams : str or Path
        The YAML.
    settings : dict, optional
        ``with`` in the study's YAML: overrides that all models share.
    keys : dict, optional
        The YAML's own names for what the study sets. None as a name: the
        study does not set it.
    build : callable, optional
        Prepares a run, where another script than the study's own does.

    Raises
    ------
    ValueError
        When the YAML is not there, or has no such keys.
    """

    def __init__(
        self,
        name: str,
        hparams,
        settings: Optional[Mapping] = None,
        keys: Optional[Mapping] = None,
        build: Optional[Callable] = None,
    ):
        self.name, self.hparams, self.build = name, Path(hparams), build
        self.settings = dict(settings or {})
        where = f"Training '{name}'"
        if not self.hparams.is_file():
            raise ValueError(
                f"{where}: there is no file {self.hparams} (`hparams`)."
            )
        self.known = top_level_keys(self.hparams)
        unknown = [word for word in keys or {} if word not in WORDS]
        if unknown:
            raise ValueError(
                f"{where}: `keys` has {', '.join(unknown)}; expected any of "
                f"{', '.join(WORDS)}."
            )
        for key in (keys or {}).values():
            if key is not None:
                self._check_key(key, f"{where}: `keys`")
        self.words = {**WORDS, **(keys or {})}
        self.check(self.settings, f"{where}: `with`")

    def check(self, settings: Mapping, where: str) -> None:
        """Raises where overrides are not keys of the YAML.

        Arguments
        ---------
        settings : dict
            Overrides.
        where : str
            What gives them, for the message.
        """
        for key in settings:
            self._check_key(key, where)

    def check_domains(self, domains: Sequence, settings: Mapping, where: str):
        """Raises where the YAML could not be told its domains.

        Arguments
        ---------
        domains : list of str
            The domains of a model.
        settings : dict
            The model's own overrides.
        where : str
            The model, for the message.
        """
        if self.key("domains") is not None:
            return
        everything = {**self.settings, **settings}
        if DOMAIN not in json.dumps(everything, default=str):
            raise ValueError(
                f"{where}: {self.hparams} has no key `{self.words['domains']}`, "
                "so that it would be trained on the same data whatever its "
                f"domain. Name the key with `keys` of training '{self.name}', "
                "or put {domain} into its `with`."
            )
        if len(domains) > 1:
            raise ValueError(
                f"{where}: {{domain}} in the overrides stands for one domain, "
                f"and this model is trained on {', '.join(domains)}. Give it "
                "its own data by `with`."
            )

    def key(self, word: str) -> Optional[str]:
        """The YAML's key for something that the study sets, if it has one.

        Arguments
        ---------
        word : str
            "seed", "output_folder", "run", "domains", "tests", "start_from",
            "guide", "teachers".

        Returns
        -------
        str or None
        """
        key = self.words[word]
        return key if key in self.known else None

    def overrides(self, values: Mapping, settings: Mapping) -> dict:
        """All overrides of the YAML for one model.

        Arguments
        ---------
        values : dict
            What the study sets: "seed", "domains" and so on.
        settings : dict
            The model's own overrides, which win.

        Returns
        -------
        dict
        """
        words = {"{seed}": values.get("seed")}
        if len(values.get("domains", ())) == 1:
            words[DOMAIN] = values["domains"][0]
        set_here = {
            self.key(word): value
            for word, value in values.items()
            if self.key(word) is not None
        }
        return {
            **fill(self.settings, words),
            **set_here,
            **fill(settings, words),
        }

    def tree(self, overrides: Mapping) -> dict:
        """The whole YAML as plain data, of which nothing is made or run.

        References are resolved and included files are read.

        Arguments
        ---------
        overrides : dict
            Overrides of the YAML.

        Returns
        -------
        dict
            Key of the YAML to its value.
        """
        plain = json.loads(json.dumps(dict(overrides), default=str))
        check_yaml(read_text(self.hparams, YAML_LIMIT), str(self.hparams))
        # By its name, it finds the files that the YAML includes
        with open(self.hparams, encoding="utf-8") as file:
            text = _resolved(file, plain)
        return parse_yaml(text, str(self.hparams), _PlainLoader)

    def resolved(self, overrides: Mapping, study_folder) -> dict:
        """The whole YAML as plain data, to know whether it has changed.

        An object or a list counts as well as a number does. Paths inside the
        study's folder are written relative to it: a study may be moved. Where
        a study looks for data does not count.

        Arguments
        ---------
        overrides : dict
            Overrides of the YAML.
        study_folder : str or Path
            The study's folder.

        Returns
        -------
        dict
            Key of the YAML to its value.
        """
        tree = self.tree(overrides)
        tree.pop(FILES, None)
        return without_folder(tree, study_folder)

    def decisive(self, overrides: Mapping, study_folder) -> dict:
        """The part of the YAML that decides a training: all but its tests.

        Arguments
        ---------
        overrides : dict
            Overrides of the YAML.
        study_folder : str or Path
            The study's folder.

        Returns
        -------
        dict
        """
        return {
            key: value
            for key, value in self.resolved(overrides, study_folder).items()
            if not str(key).startswith("test_") and key != self.key("tests")
        }

    def _check_key(self, key, where):
        """Raises where the YAML has no such key."""
        top = str(key).split(".")[0]
        if top not in self.known:
            raise ValueError(
                f"{where}: {self.hparams} has no key `{top}`. It has "
                f"{', '.join(sorted(self.known))}."
            )


def top_level_keys(path) -> set:
    """The keys of a YAML, read without constructing anything.

    Arguments
    ---------
    path : str or Path
        A HyperPyYAML file.

    Returns
    -------
    set of str

    Example
    -------
    >>> path = getfixture("tmp_path") / "train.yaml"
    >>> _ = path.write_text("lr: 1\\nmodel: !new:torch.nn.Linear [1, 2]\\n")
    >>> sorted(top_level_keys(path))
    ['lr', 'model']
    """
    text = read_text(path, YAML_LIMIT)
    check_yaml(text, str(path))
    tree = yaml.compose(text, Loader=yaml.SafeLoader)
    if not isinstance(tree, yaml.MappingNode):
        raise ValueError(f"{path} is no YAML of keys and values.")
    return {
        key.value for key, _ in tree.value if isinstance(key, yaml.ScalarNode)
    }


def _resolved(file, overrides):
    """The text of a YAML with its references resolved and files included."""
    try:
        return resolve_references(file, overrides).getvalue()
    except (YAMLError, ValueError, LookupError, TypeError) as error:
        # HyperPyYAML does not say which file it is
        reason = " ".join(str(error).split())
        raise ValueError(f"{file.name}: {reason}") from error
    except (AttributeError, RecursionError) as error:
        raise ValueError(
            f"{file.name} is no YAML of keys and values, or is nested too "
            f"deeply: {error}"
        ) from error


def without_folder(value: Any, folder) -> Any:
    """Plain data in which paths into a folder no longer name the folder.

    Arguments
    ---------
    value : object
        Plain data.
    folder : str or Path
        The folder.

    Returns
    -------
    object

    Example
    -------
    >>> without_folder({"save": "results/a/save"}, "results/a")
    {'save': '<study>/save'}
    """
    if isinstance(value, str):
        for form in (str(Path(folder).absolute()), str(Path(folder))):
            value = value.replace(form, STUDY)
        return value
    if isinstance(value, Mapping):
        return {
            key: without_folder(entry, folder) for key, entry in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [without_folder(entry, folder) for entry in value]
    return value


class _PlainLoader(yaml.SafeLoader):
    """Reads HyperPyYAML's tags as plain data, and constructs nothing."""


def _tagged(loader, suffix, node):
    """A tagged node as its tag and its content."""
    if isinstance(node, yaml.MappingNode):
        content = loader.construct_mapping(node, deep=True)
    elif isinstance(node, yaml.SequenceNode):
        content = loader.construct_sequence(node, deep=True)
    else:
        content = loader.construct_scalar(node)
    return {f"!{suffix}": content}


_PlainLoader.add_multi_constructor("!", _tagged)


def read_training(name: str, given: Mapping) -> Training:
    """A training from its entry in the YAML of a study.

    Arguments
    ---------
    name : str
        Its name.
    given : dict
        ``hparams``, and perhaps ``with``, ``keys`` and ``build``.

    Returns
    -------
    Training

    Raises
    ------
    ValueError
        Where it is not such an entry.
    """
    if not isinstance(given, Mapping) or "hparams" not in given:
        raise ValueError(
            f"Training '{name}' is {given!r}; expected `hparams`, and perhaps "
            "`with`, `keys` or `build`."
        )
    unknown = set(given) - {"hparams", "with", "keys", "build"}
    if unknown:
        raise ValueError(
            f"Training '{name}': unknown keys {', '.join(sorted(unknown))}; "
            "expected hparams, with, keys or build."
        )
    return Training(
        name,
        given["hparams"],
        given.get("with"),
        given.get("keys"),
        given.get("build"),
    )
