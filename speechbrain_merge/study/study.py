"""A study: models that are trained, merged, combined, tested and compared.

A recipe's YAML describes the whole of it, and one command runs it::

    study: !new:speechbrain_merge.study.Study
        folder: !ref <results_folder>
        seeds: [1986, 2986, 3986]
        domains: [child_l2, digits, telephony]
        tests: [child_l2, digits, telephony, read]
        trainings:
            expert:
                hparams: hparams/train.yaml
                with: {number_of_epochs: 2}
        models:
            "{domain}": {train: "{domain}"}
            in-turn: {in_turn: "{each}"}
            aode: {merge: average, of: "{each}"}
        compare: [[in-turn, aode]]
        only: !ref <only>
        plan: !ref <plan>
        jobs: !ref <jobs>
        launcher: !ref <launcher>

``train.py`` says nothing of studies but ``hparams["study"].run(build,
run_opts)``. What the models may be is in ``study/plan.py``, how trainings are
told their domains in ``study/trainings.py``, and what is written in
``study/making.py``, ``study/testing.py`` and ``study/results.py``.

Every step is done once. A study that was stopped goes on where it was; one to
which models, domains, seeds or tests were added does what is new. All is
checked before anything is trained.

Authors
 * The speechbrain_merge authors 2026
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Optional, Union

from tqdm import tqdm

from speechbrain.utils.distributed import run_on_main
from speechbrain.utils.logger import get_logger
from speechbrain.utils.train_logger import TrainLogger
from speechbrain_merge.study.compared import groups_of, read_compared
from speechbrain_merge.study.continual import Continual
from speechbrain_merge.study.domain_files import check_domain_files
from speechbrain_merge.study.estimate import describe_plan
from speechbrain_merge.study.exporting import export_models
from speechbrain_merge.study.extras import (
    Landscape,
    check_extras,
    measure_costs,
    walk_landscapes,
)
from speechbrain_merge.study.gathering import gather
from speechbrain_merge.study.graph import check_known, with_ancestors
from speechbrain_merge.study.launch import launch
from speechbrain_merge.study.making import Maker
from speechbrain_merge.study.measures import (
    add_measures,
    check_measures,
    require_measures,
)
from speechbrain_merge.study.nodes import Train
from speechbrain_merge.study.plan import plan_models
from speechbrain_merge.study.report import write_report
from speechbrain_merge.study.sections import check_sections
from speechbrain_merge.study.sequences import sequence_of
from speechbrain_merge.study.testing import USUAL, Tester
from speechbrain_merge.study.training_data import check_data
from speechbrain_merge.study.trainings import read_training
from speechbrain_merge.training import RunSampler

logger = get_logger(__name__)


class Study:
    """A graph of models along the axes domain, seed and draw.

    Arguments
    ---------
    folder : str or Path
        Where everything goes. It may be moved.
    models : dict
        Name to specification; see ``study/plan.py``.
    trainings : dict
        Name to ``hparams``, and perhaps ``with``, ``keys`` and ``build``; see
        ``study/trainings.py``. The first is the usual one.
    domains : list of str
        The domains that models are trained on.
    tests : list of str or dict, optional
        The test sets; by default the domains. A dict is of columns of means in
        the table, such as ``{English: [read, spoken], other: [fr, de]}``; by
        default these are the sets in domain and those out of domain.
    seeds : list of int
        Every model exists once for each.
    draws : RunSampler, optional
        Hyperparameters for models with ``{draw}`` in their names.
    modes : dict, optional
        Name to the settings of the Brain's ``prepare_test``: ways in which
        every model is tested.
    metric : str
        The entry of the checkpoints' meta by which the best is chosen.
    mode : str
        "min" where a lower metric is better, else "max".
    tracker : str, optional
        The Brain's attribute with its ``ErrorRateStats``; by default the
        metric's name in lower case with ``_metric``.
    checkpoint : str
        "best" or "last": which candidate stands for a training.
    keep_checkpoints : bool
        Whether the checkpoints of finished trainings stay. Candidates always
        do.
    evaluate_with : str, optional
        The training whose YAML merges and tests; by default the first.
    retention : list of str, optional
        The sets on which forgetting is measured; by default those without a
        domain of training, and none of an empty list.
    measures : dict
        Name to a measure of transcripts that is shown beside the error rate;
        see ``study/measures.py``.
    compare : list
        Pairs of models whose difference is tested, the baseline first; or
        ``{models: [A, B], sets: SETS}``. See ``study/compared.py``.
    reference : str, optional
        A model that every other row is compared with.
    continual : dict, optional
        Measures sequences as CL-MASR does; see ``study/continual.py``.
    landscapes : dict
        Name to ``{between: [A, B], points: 11}``; see ``study/extras.py``.
    exports : list of str
        The models that are exported, by the run's own ``export``.
    card : dict, optional
        What the Hub wants to know of an exported model: ``license``,
        ``language``, ``base_model`` and more; see ``report/hub.py``.
    costs : bool
        Whether to measure time and memory of each merge in a process of its
        own.
    only : str or list of str, optional
        Only these models and what they are made from; ``NAME@SEED`` for one
        seed.
    plan : bool
        Whether to print what there is to do, and stop.
    jobs : int
        How many processes make models side by side. 0 makes and tests the
        models of `only`, and writes no report, as a single job does.
    launcher : str, optional
        "slurm" submits each model as a job of a cluster, "local" runs such
        jobs on this machine, both through submitit.
    cluster : dict
        Options of submitit's executor, such as ``slurm_partition``.
    train_logger : TrainLogger, optional
        Gets the error rates of all models too; a ``TensorboardLogger`` also
        gets the table and the pictures.

    Raises
    ------
    ValueError
        Where something is wrong, naming the key of the YAML.
    """

    def __init__(
        self,
        folder: Union[str, Path],
        models: Mapping,
        trainings: Optional[Mapping] = None,
        domains: Sequence = (),
        tests: Union[Sequence, Mapping, None] = None,
        seeds: Sequence = (0,),
        draws: Optional[RunSampler] = None,
        modes: Optional[Mapping] = None,
        metric: str = "WER",
        mode: str = "min",
        tracker: Optional[str] = None,
        checkpoint: str = "best",
        keep_checkpoints: bool = False,
        evaluate_with: Optional[str] = None,
        retention: Optional[Sequence] = None,
        measures: Optional[Mapping] = None,
        compare: Sequence = (),
        reference: Optional[str] = None,
        continual: Optional[Mapping] = None,
        landscapes: Optional[Mapping] = None,
        exports: Sequence = (),
        card: Optional[Mapping] = None,
        costs: bool = False,
        only: Union[str, Sequence, None] = None,
        plan: bool = False,
        jobs: int = 1,
        launcher: Optional[str] = None,
        cluster: Optional[Mapping] = None,
        train_logger: Optional[TrainLogger] = None,
    ):
        check_sections(
            {
                "models": models,
                "trainings": trainings,
                "domains": domains,
                "tests": tests,
                "measures": measures,
                "seeds": seeds,
                "modes": modes,
                "metric": metric,
                "tracker": tracker,
                "evaluate_with": evaluate_with,
                "retention": retention,
                "measures": measures,
                "continual": continual,
                "compare": compare,
                "reference": reference,
                "landscapes": landscapes,
                "exports": exports,
                "card": card,
                "only": only,
                "jobs": jobs,
                "cluster": cluster,
            }
        )
        self.folder = Path(folder)
        self.domains = list(domains)
        self.means = {}
        if isinstance(tests, Mapping):
            self.means = {name: list(sets) for name, sets in tests.items()}
            tests = dict.fromkeys(
                one for sets in tests.values() for one in sets
            )
        self.tests = list(self.domains if tests is None else tests)
        self.seeds = [int(seed) for seed in seeds]
        self.modes = {
            str(name): dict(settings or {})
            for name, settings in (modes or {USUAL: {}}).items()
        }
        self.metric, self.mode = metric, mode
        self.train_logger = train_logger
        self.tracker = tracker or f"{metric.lower()}_metric"
        self.checkpoint = checkpoint
        self.keep_checkpoints = keep_checkpoints
        self.retention = None if retention is None else list(retention)
        self.measures = check_measures(measures or {})
        self.costs, self.plan, self.jobs = costs, plan, int(jobs)
        self.launcher, self.cluster = launcher, dict(cluster or {})
        self.trainings = {
            name: read_training(name, given)
            for name, given in (trainings or {}).items()
        }
        self._check_axes()
        self.evaluate_with = evaluate_with or next(iter(self.trainings))
        if self.evaluate_with not in self.trainings:
            raise ValueError(
                f"`evaluate_with` is '{self.evaluate_with}'; expected one of "
                f"{', '.join(self.trainings)}."
            )
        self.plans = {
            seed: plan_models(
                models,
                self.domains,
                list(self.trainings),
                self.tests,
                seed,
                self._draws(draws, seed),
            )
            for seed in self.seeds
        }
        self.only = _as_list(only)
        names = [node.name for node in self.plans[self.seeds[0]]]
        groups = groups_of(self)
        self.compare = [read_compared(pair, names, groups) for pair in compare]
        if reference is not None:
            check_known(reference, names, "`reference`")
        self.reference = reference
        self.continual = continual and Continual(**continual)
        if self.continual:
            rows = [
                node.name
                for node in self.plans[self.seeds[0]]
                if node.row and node.tests is None
            ]
            self.continual.check(rows, self.domains, self.tests)
        self.landscapes = {
            name: Landscape(name, **given)
            for name, given in (landscapes or {}).items()
        }
        self.exports = _as_list(exports) or []
        self.card = dict(card or {})
        self.check_nodes()
        check_extras(self, names)

    def run(self, build: Callable, run_opts: Optional[Mapping] = None) -> Any:
        """Makes, tests, compares and reports all models.

        Arguments
        ---------
        build : callable
            ``build(hparams_file, overrides, run_opts)`` gives a
            ``speechbrain_merge.Run``.
        run_opts : dict, optional
            SpeechBrain's run options.

        Returns
        -------
        dict or None
            The results, as in ``results.json``; None where there was only a
            plan to print, or one job to do.

        Raises
        ------
        ValueError
            Where the data of a domain are not there, if the recipe says where
            they are to be (see ``study/domain_files.py``), or have changed
            since models were trained on them (``study/training_data.py``).
        """
        check_domain_files(self)
        check_data(self)
        if self.plan:
            print(run_on_main(describe_plan, args=[self]))
            return None
        require_measures(self.measures)
        if self.jobs > 1 or self.launcher:
            launch(self)
        makers = {
            seed: Maker(
                self,
                seed,
                {node.name: node for node in self.plans[seed]},
                build,
                run_opts or {},
            )
            for seed in self.seeds
        }
        found, bar = {}, self._progress()
        for seed, nodes in self.wanted().items():
            tester = Tester(self, makers[seed])
            makers[seed].check(nodes)
            for node in nodes:
                bar.set_postfix_str(f"{node.name}, seed {seed}")
                makers[seed].make(node.name)
                bar.update()
            for node in nodes:
                if node.row and node.tests != ():
                    found[node.name, seed] = tester.test(node.name)
                if node.row and getattr(node, "stages", ()):
                    found.update(self._stages(tester, node, seed))
                bar.update()
        bar.close()
        if self.jobs == 0:
            return None
        results = gather(self, makers, found)
        run_on_main(add_measures, args=[self, results])
        measure_costs(self, makers, results)
        walk_landscapes(self, makers, results)
        run_on_main(write_report, args=[self, results])
        export_models(self, makers, results)
        return results

    def wanted(self) -> dict:
        """The nodes to make, by seed.

        Returns
        -------
        dict
            Seed to list of Node, parents first; seeds without any are left
            out.
        """
        if self.only is None:
            return dict(self.plans)
        wanted = {}
        for asked in self.only:
            name, _, seed = str(asked).partition("@")
            for one in [int(seed)] if seed else self.seeds:
                if one not in self.seeds:
                    raise ValueError(
                        f"`only` names seed {one}, and the study has "
                        f"{', '.join(map(str, self.seeds))}."
                    )
                wanted.setdefault(one, []).append(name)
        return {
            seed: with_ancestors(self.plans[seed], wanted[seed])
            for seed in self.seeds
            if seed in wanted
        }

    def check_nodes(self) -> None:
        """Raises where a model asks for what its training does not have."""
        for nodes in self.plans.values():
            for node in nodes:
                if not isinstance(node, Train):
                    continue
                training = self.trainings[node.training]
                where = f"Model '{node.name}'"
                training.check(node.settings, f"{where}: `with`")
                training.check_domains(node.domains, node.settings, where)

    def _check_axes(self):
        """Raises where axes or choices are wrong."""
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(
                f"`seeds` are {self.seeds}: expected different ones."
            )
        if not self.trainings:
            raise ValueError(
                "`trainings` is empty: a study needs the YAML of a recipe, at "
                "least to test with."
            )
        if not self.tests:
            raise ValueError("`tests` is empty: name the test sets.")
        if self.checkpoint not in ("best", "last"):
            raise ValueError(
                f"`checkpoint` is {self.checkpoint!r}; expected best or last."
            )
        if self.launcher not in (None, "local", "slurm"):
            raise ValueError(
                f"`launcher` is {self.launcher!r}; expected local, slurm or "
                "null."
            )
        if self.jobs < 0:
            raise ValueError(f"`jobs` is {self.jobs}; expected 0 or more.")
        strangers = set(self.retention or ()) - set(self.tests)
        if strangers:
            raise ValueError(
                f"`retention` names {', '.join(sorted(strangers))}, which are "
                f"not among the tests {', '.join(self.tests)}."
            )

    def _draws(self, draws, seed):
        """The draws of a seed: other seeds draw other hyperparameters."""
        if draws is None:
            return []
        if seed == self.seeds[0]:
            return list(draws)
        shifted = draws.seed + seed - self.seeds[0]
        return list(RunSampler(draws.ranges, draws.runs, shifted, draws.prefix))

    def _progress(self):
        """A bar over all models, which are made and then tested."""
        number = sum(len(nodes) for nodes in self.wanted().values())
        return tqdm(total=2 * number, desc=self.folder.name, unit="step")

    def _stages(self, tester, node, seed):
        """The counts after each domain of a sequence."""
        sequence = sequence_of(node, tester.maker.nodes)
        found = {}
        if self.continual:
            learned = [
                sequence.domains[:k] for k in range(len(node.stages) + 1)
            ]
            sets = [(*self.continual.base, *domains) for domains in learned]
            tested = tester.stages(sequence, sets)
            found["continual", node.name, seed] = tested
        elif set(sequence.domains) <= set(self.tests):
            sets = [sequence.domains] * (len(node.stages) + 1)
            found["sequence", node.name, seed] = tester.stages(sequence, sets)
        return found


def _as_list(value):
    """One name or several as a list; None stays None."""
    if value is None:
        return None
    return [value] if isinstance(value, str) else list(value)
