"""Loss and error rate on the line and on the plane between models.

Weights can be averaged where the models that lie between them are good, too.
Along the line from one model to another, ``speechbrain_merge.evaluation.barrier``
says so in one number. Fu et al. (2023, arXiv 2306.02541, Figure 2) draw the
same line from where the training began to where it ended; three models span a
plane (``speechbrain_merge.brain.weight_plane``).

A ``Landscape`` measures with the recipe itself: its loss and its word errors on
a selection set, as when it validates::

    landscape = Landscape(asr_brain, valid_set, folder="results/landscape")
    apart = landscape.line({"SL": sl, "SSL": ssl}, name="direct")
    close = landscape.line({"aligned SL": aligned, "SSL": ssl}, name="aligned")
    begun = landscape.line({"start": start, "SL": sl}, name="from the start")
    plane = landscape.plane({"SSL": ssl, "SL": sl, "aligned SL": aligned})

Each point is a merge in memory, streamed from the files, and a decoding. With a
folder each is written down once scored, under a key of what it is: a landscape
that was stopped goes on where it was, and others in the same folder do not
score the same models again. Results are plain dicts for JSON, to be drawn by
``speechbrain_merge.report.plot_line`` and ``plot_plane``.

Authors
 * The speechbrain_merge authors 2026
"""

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Optional, Union

import torch
from tqdm import tqdm

import speechbrain as sb
from speechbrain.utils.distributed import if_main_process, run_on_main
from speechbrain_merge.brain.batches import FixedBatches
from speechbrain_merge.brain.decisive import beside, decisive_settings, running
from speechbrain_merge.brain.scorer import Scorer
from speechbrain_merge.brain.weight_plane import (
    WeightPlane,
    evenly,
    squared_distances,
)
from speechbrain_merge.engine import merge
from speechbrain_merge.evaluation.barrier import barrier
from speechbrain_merge.methods import Average
from speechbrain_merge.records.files import write_whole
from speechbrain_merge.records.ownership import refuse_other
from speechbrain_merge.records.reading import read_json
from speechbrain_merge.search import Journal
from speechbrain_merge.weights import digest, open_weights

MEASURES = ("loss", "wer")
KINDS = ("line", "plane")


class Landscape:
    """Measures loss and error rate wherever weights lie between models.

    The Brain must be ready to evaluate, as after ``fit`` or ``evaluate``: what
    is not among the models' weights, such as the statistics of an input
    normaliser, stays as it is. Modules are in evaluation mode. The weights of a
    point are borrowed: afterwards the Brain holds what it held before.

    Arguments
    ---------
    brain : speechbrain.Brain
        With ``MergeMixin``.
    valid_set : Dataset, DataLoader or dict
        The utterances; a dict names one set for each domain.
    valid_loader_kwargs : dict, optional
        As for ``fit``. By default the recipe's ``valid_loader_kwargs``.
    folder : str or Path, optional
        Gets ``points.jsonl``, all points that were scored, and the results
        that are given a name. ``None``: nothing is written.
    tracker : str
        The Brain's attribute that holds the ``ErrorRateStats``.
    decode : str
        ``"valid"`` or ``"test"``: which of the recipe's searches.
    context : dict, optional
        What else decides the outcome and is no number or word among the
        recipe's hyperparameters, such as ``{"mode": "streaming"}``, so that
        points scored otherwise are not taken for the same.
    workers : int
        Threads that merge.
    """

    def __init__(
        self,
        brain,
        valid_set,
        valid_loader_kwargs: Optional[dict] = None,
        folder: Union[str, os.PathLike, None] = None,
        tracker: str = "wer_metric",
        decode: str = "valid",
        context: Optional[Mapping] = None,
        workers: int = 1,
    ):
        self.brain, self.workers = brain, workers
        stage = getattr(sb.Stage, decode.upper())
        loaders = brain.validation_loader.loaders(
            brain, valid_set, stage, valid_loader_kwargs
        )
        batches = FixedBatches(brain, loaders, stage=stage)
        self.scorer = Scorer(brain, batches, tracker)
        self.folder = None if folder is None else Path(folder)
        self._scored = {}
        self._journal = None
        if self.folder is not None:
            about = {
                "selection": self.scorer.key(),
                "hparams": decisive_settings(brain),
                **(context or {}),
            }
            self._journal = Journal(self.folder / "points.jsonl", about)

    def line(
        self,
        models: Mapping,
        points: Union[int, Sequence[float]] = 11,
        name: Optional[str] = None,
    ) -> dict:
        """Walks from one model to another.

        Arguments
        ---------
        models : dict
            Two titles, from and to, each with anything that ``open_weights``
            opens.
        points : int or list of float
            So many from 0, the first model, to 1, the second; or these, which
            may go beyond.
        name : str, optional
            Of the JSON file to write in the folder.

        Returns
        -------
        dict
            ``models`` (title and digest), their ``distance``, ``points`` (for
            each ``t``, ``weights``, ``loss``, ``wer`` in percent, ``errors``
            and ``words``) and the ``barrier`` of loss and ``wer``: None where
            it has no finite value, or 0, 1 or all between is left out.

        Raises
        ------
        ValueError
            When there are not two models, or they do not fit together.
        FileExistsError
            When a file of that name in the folder is no such result.
        """
        self._check_name(name)
        members, squares = self._members(models, 2)
        if isinstance(points, int):
            points = evenly(0.0, 1.0, points)
        points = sorted(set(points))
        walked = []
        for t in self._bar(points, name or "line"):
            weights = [1 - t, float(t)]
            walked.append({"t": float(t), **self._point(members, weights)})
        result = {
            "kind": "line",
            "models": _titles(members),
            "distance": math.sqrt(squares[0][1]),
            "points": walked,
            "barrier": {name: _height(walked, name) for name in MEASURES},
        }
        return self._kept(result, name)

    def plane(
        self,
        models: Mapping,
        points: int = 9,
        margin: float = 0.25,
        name: Optional[str] = None,
    ) -> dict:
        """Walks over the plane through three models.

        Arguments
        ---------
        models : dict
            Three titles, each with anything that ``open_weights`` opens. The
            first is the origin, the second on the x axis.
        points : int
            Along each axis; all ``points ** 2`` are scored, and the models.
        margin : float
            How far to go beyond the models on every side, as a part of their
            extent along the axis.
        name : str, optional
            Of the JSON file to write in the folder.

        Returns
        -------
        dict
            ``models`` (title, digest, and all that a point has), ``x`` and
            ``y`` of the grid, and ``points``, row by row from the lowest
            ``y``: ``x``, ``y``, ``weights``, ``loss``, ``wer`` in percent,
            ``errors`` and ``words``.

        Raises
        ------
        ValueError
            When there are not three models, they do not fit together, or they
            lie on one line.
        FileExistsError
            When a file of that name in the folder is no such result.
        """
        self._check_name(name)
        members, squares = self._members(models, 3)
        plane = WeightPlane(squares)
        columns, rows = plane.grid(points, margin)
        marks = [
            (x, y, [float(place == number) for place in range(3)])
            for number, (x, y) in enumerate(plane.positions)
        ]
        places = [(x, y, plane.weights_at(x, y)) for y in rows for x in columns]
        walked = [
            {"x": x, "y": y, **self._point(members, weights)}
            for x, y, weights in self._bar(marks + places, name or "plane")
        ]
        result = {
            "kind": "plane",
            "models": [
                {**title, **point}
                for title, point in zip(_titles(members), walked)
            ],
            "x": columns,
            "y": rows,
            "points": walked[3:],
        }
        return self._kept(result, name)

    def _members(self, models, number):
        """Title, source and digest of each model, and their distances."""
        if len(models) != number:
            raise ValueError(
                f"{number} models are needed, each with a title of its own; "
                f"there are {len(models)}: {list(models)}"
            )
        sources = [_still(source) for source in models.values()]
        squares = squared_distances(
            sources, progress=not self.brain.noprogressbar
        )
        members = [
            (title, source, getattr(source, "digest", None) or digest(source))
            for title, source in zip(models, sources)
        ]
        return members, squares

    def _bar(self, places, title):
        """The places to go to, with a bar."""
        hidden = self.brain.noprogressbar or not if_main_process()
        return tqdm(places, desc=f"landscape ({title})", disable=hidden)

    def _point(self, members, weights):
        """Loss and error rate of a weighted average of the models."""
        used = [
            (source, code, weight)
            for (_, source, code), weight in zip(members, weights)
            if weight
        ]
        codes = [code for _, code, _ in used]
        shares = [weight for _, _, weight in used]
        others = beside(self.brain, used[0][0])
        key = (*sorted(zip(codes, shares)), *others.items())
        if key not in self._scored:
            self._scored[key] = self._remembered(used, codes, shares, others)
        return {"weights": list(weights), **self._scored[key]}

    def _remembered(self, used, codes, shares, others):
        """Loss and errors, from the journal if they are there."""
        if self._journal is None:
            return _measured(self._score(used))
        key = self._journal.key(codes, shares, others)
        tally = self._journal.find(key)
        if tally is None:
            tally = self._score(used)
            self._journal.record(key, tally, weights=shares)
        elif tally.loss is None:  # older journals have it beside the tally
            loss = self._journal.details(key).get("loss")
            tally = dataclasses.replace(tally, loss=loss)
        return _measured(tally)

    def _score(self, used):
        """Runs the recipe with an average of the models."""
        sources = [source for source, _, _ in used]
        weights = sources[0]  # as it is, without rounding
        if len(used) > 1:
            weights = merge(
                Average([weight for _, _, weight in used]),
                sources,
                workers=self.workers,
                progress=False,
                same_base=False,  # the way between any two models
            )
        with running(self.brain), self.brain.borrowed_weights(weights):
            return self.scorer.score()

    def _check_name(self, name):
        """Raises where a result could not be written, or not without loss."""
        if name is None:
            return
        if self.folder is None:
            raise ValueError(
                f"'{name}' has no folder to be written to: give the "
                "Landscape a `folder`"
            )
        run_on_main(
            refuse_other,
            args=[
                self.folder / f"{name}.json",
                _is_landscape,
                "no landscape",
                "give the landscape another `name` or `folder`",
            ],
        )

    def _kept(self, result, name):
        """Writes a result if it has a name."""
        if name is not None:
            path = self.folder / f"{name}.json"
            run_on_main(_write, args=[path, result])
        return result


def _is_landscape(path):
    """Whether a file is a result of a landscape."""
    found = read_json(path)
    return isinstance(found, dict) and found.get("kind") in KINDS


def _still(source):
    """A source that stays what it is when weights are put into the Brain,
    whose own modules and their state dicts do not."""
    if not isinstance(source, (dict, torch.nn.Module)):
        return source
    with open_weights(source) as weights:
        return {name: weights[name].clone() for name in weights.names()}


def _height(points, measure):
    """The barrier of a line, or None where it has no finite one."""
    ends = [point[measure] for point in points if point["t"] in (0, 1)]
    between = any(0 < point["t"] < 1 for point in points)
    if len(ends) < 2 or None in ends or not between:
        return None
    height = barrier(points, measure)
    return height if math.isfinite(height) else None


def _titles(members):
    """The models' entries in a result."""
    return [{"name": title, "digest": code} for title, _, code in members]


def _measured(tally):
    """What a result says of a point."""
    counts = tally.to_dict()
    return {
        "loss": counts["loss"],
        "wer": tally.value,
        "errors": counts["errors"],
        "words": counts["words"],
    }


def _write(path, result):
    """Writes a result, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=1, allow_nan=False)
    write_whole(path, text + "\n")
