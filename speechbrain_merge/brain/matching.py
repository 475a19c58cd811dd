r"""Learning which unit of one model is which of another, by the recipe's loss.

The Brain's own ``compute_forward`` and ``compute_objectives`` say how good the
mean of two models is, and in which direction it would be better; a learner
(``speechbrain_merge.methods.transport.learning``) turns that into permutations.
A few hundred labelled batches are enough for a small model. They are training,
and a fair comparison gives as many steps to whatever it compares with.

Every ``check_every`` steps the loss of the mean is measured on the selection
sets, the map that learning starts from included; the map with the lowest loss
is what is kept, so that learning cannot end worse than it started, as far as
the selection sets tell.

In a ``train.py`` it is enough that the stage's method has ``cost: learned``;
``collect_statistics`` then calls this. In a study, ``align`` a model with
``parameters: {cost: learned}``.

The same seed gives the same map. The state is kept in a folder: an interrupted
learning goes on where it was, and a finished one is not repeated. Under
``torchrun`` each process goes through the same batches, and one writes.

Authors
 * The speechbrain_merge authors 2026
"""

import hashlib
import json
from contextlib import ExitStack
from pathlib import Path

import torch
from tqdm import tqdm

import speechbrain as sb
from speechbrain.utils.distributed import ddp_barrier, run_on_main
from speechbrain.utils.logger import get_logger
from speechbrain_merge.brain.batches import FixedBatches
from speechbrain_merge.brain.coefficient_gradients import WeightsInModules
from speechbrain_merge.brain.decisive import (
    beside,
    decisive_settings,
    while_running,
)
from speechbrain_merge.brain.without_training import (
    same_draws,
    without_training,
)
from speechbrain_merge.methods.transport.alignment import find_alignment
from speechbrain_merge.methods.transport.learning import (
    LEARNERS,
    check_learning,
)
from speechbrain_merge.methods.transport.symmetry_map import parts_beside
from speechbrain_merge.pool.on_record import open_on_record
from speechbrain_merge.records.checked import (
    fields,
    listed,
    mapped,
    plain_float,
    whole,
)
from speechbrain_merge.records.file_hashes import content_of
from speechbrain_merge.weights import (
    ChangedContent,
    digest,
    open_weights,
    verify_own_hash,
    write_with_hash,
)
from speechbrain_merge.weights.mapping import Entry, Weights
from speechbrain_merge.weights.moved import MAP_SUFFIXES
from speechbrain_merge.weights.state_files import load_state, save_state
from speechbrain_merge.weights.weight_norm import refold

logger = get_logger(__name__)

STATE = {
    "learned",
    "optimizer",
    "transports",
    "history",
    "best",
    "done",
    "about",
}
_ANEW = "Delete it to learn anew."

_history = listed(
    fields({"step": whole(0), "loss": plain_float, "moved": whole(0)})
)


@while_running
def learn_matching(
    brain,
    source,
    anchor,
    data,
    valid,
    folder,
    loader_kwargs=None,
    learning=None,
    cost="weights",
    architecture="detect",
    heads=None,
):
    """Learns the permutations that align one model to another.

    Arguments
    ---------
    brain : speechbrain.Brain
        With ``MergeMixin``. Afterwards it has its own weights again.
    source, anchor : object
        Candidates, or other sources of ``open_weights``, with names
        ``<module>.<parameter>``: the model that is aligned, and to which.
    data : Dataset, DataLoader or dict
        Transcribed speech to learn on.
    valid : Dataset, DataLoader or dict
        What the map is chosen on.
    folder : str or Path
        Gets the map and the state of learning, named by all that decides them.
    loader_kwargs : dict, optional
        As for ``fit``: batch size and so on.
    learning : dict, optional
        See ``check_learning``.
    cost : "weights" or dict
        As for ``find_alignment``, of the map that learning starts from.
    architecture, heads
        As for ``find_alignment``.

    Returns
    -------
    path : Path
        A safetensors file with the order of each space. Its metadata have
        ``history``, a row for each look at the selection sets: ``step``, the
        ``loss`` of the mean, and how many units it has ``moved``; and
        ``step``, that of the row whose map this is.

    Raises
    ------
    ValueError
        When an option is not known, or a loss is not finite.
    """
    learning = check_learning(learning)
    loader_kwargs = dict(loader_kwargs or {})
    kwargs = dict(loader_kwargs)
    if learning["batch_size"] is not None:
        kwargs["batch_size"] = learning["batch_size"]
    batches = FixedBatches(brain, data, kwargs)
    chosen_on = FixedBatches(brain, valid, loader_kwargs)
    digests = {
        name: getattr(model, "digest", None) or digest(model)
        for name, model in (("source", source), ("anchor", anchor))
    }
    for model in (source, anchor):
        open_on_record(model).close()
    about = {
        **digests,
        "learning": learning,
        "cost": cost if isinstance(cost, str) else _digests(cost),
        "architecture": _content_of_map(architecture),
        "heads": heads,
        "data": batches.key(),
        "valid": chosen_on.key(),
        "hparams": decisive_settings(brain, stage=sb.Stage.TRAIN),
        "beside": beside(brain, anchor),
    }
    # Settings may differ by rank, such as the name of a device
    text = run_on_main(_text_of, args=[about])
    key = hashlib.sha256(text.encode()).hexdigest()[:16]
    path = run_on_main(Path(folder).joinpath, args=[f"map-{key}.safetensors"])
    if run_on_main(path.exists):
        run_on_main(_check_map, args=[path, text])
        logger.info(f"Learned map: found in {path}.")
        return path
    with ExitStack() as stack:
        opened = stack.enter_context(open_weights(anchor))
        start = None
        if learning["start"] != "identity":
            start = find_alignment(
                source, anchor, architecture, True, cost, heads=heads
            ).transports
        learner = LEARNERS[learning["learner"]](
            source,
            anchor,
            architecture=architecture,
            heads=heads,
            start=start,
            learning_rate=learning["learning_rate"],
            share=learning["share"],
        )
        stack.callback(learner.close)
        stack.enter_context(brain.borrowed_weights(anchor))
        means = _Means(learner, opened)
        modules = stack.enter_context(
            WeightsInModules(brain, means.weights, learner.names)
        )
        history, best = _learn(
            brain,
            learner,
            means,
            modules,
            batches,
            chosen_on,
            learning,
            path.with_suffix(".pt"),
            text,
        )
    least = min(history, key=lambda row: row["loss"])
    metadata = {
        **digests,
        "about": text,
        "step": str(least["step"]),
        "history": json.dumps(history),
    }
    run_on_main(write_with_hash, args=[path, best, metadata])
    return path


class _Means:
    """The mean that a learner asks for, as weights of the Brain's modules."""

    def __init__(self, learner, anchor):
        self.tensors = learner.midpoint()

        def entry(name, tensor):
            return Entry(
                tuple(tensor.shape), tensor.dtype, lambda: self.tensors[name]
            )

        plain = Weights(
            {name: entry(name, one) for name, one in self.tensors.items()},
            "the mean of two models",
            tied=learner.anchor.tied,
        )
        self.weights = refold(plain, anchor)


def _learn(
    brain, learner, means, modules, batches, valid, learning, path, about
):
    """All steps; the history, and the map of the lowest loss."""
    steps, seed = learning["steps"], learning["seed"]
    history, best, done = _resume(path, learner, about, learning)
    order = _order(len(batches), steps, seed)
    drawn = iter(batches.load(order[done:]))
    bar = tqdm(
        range(done, steps + 1),
        total=steps + 1,
        initial=done,
        desc="learn a matching",
        disable=brain.noprogressbar,
    )
    for step in bar:
        last = step == steps
        if last or step % learning["check_every"] == 0:
            maps = learner.transports()
            means.tensors = learner.mean_of(maps)
            modules.fill()
            loss = _mean_loss(brain, valid)
            if not history or loss < min(row["loss"] for row in history):
                best = {name: order.clone() for name, order in maps.items()}
            history.append({"step": step, "loss": loss, "moved": _moved(maps)})
            bar.set_postfix(loss=loss)
            state = {**learner.state_dict(), "history": history, "best": best}
            state = {**state, "done": step, "about": about}
            run_on_main(save_state, args=[path, state])
        if last:
            break
        means.tensors = learner.midpoint()
        modules.fill()
        batch = next(drawn)
        with without_training(brain, sb.Stage.TRAIN):
            torch.manual_seed(seed * 1_000_003 + step)
            with torch.enable_grad():
                predictions = brain.compute_forward(batch, sb.Stage.TRAIN)
                loss = brain.compute_objectives(
                    predictions, batch, sb.Stage.TRAIN
                )
            _check_finite(loss, batch)
            loss.backward()
        learner.update(modules.gradients())
    return history, best


def _mean_loss(brain, batches):
    """The recipe's loss on the selection sets, each utterance counting once."""
    total = count = 0.0
    with without_training(brain, sb.Stage.VALID), same_draws(), torch.no_grad():
        for place, batch in zip(
            batches.places, batches.load(range(len(batches)))
        ):
            predictions = brain.compute_forward(batch, sb.Stage.VALID)
            loss = brain.compute_objectives(predictions, batch, sb.Stage.VALID)
            _check_finite(loss, batch)
            total += float(loss) * len(place[1])
            count += len(place[1])
    return total / count


def _check_finite(loss, batch):
    if not torch.isfinite(loss):
        raise ValueError(
            f"The loss of {getattr(batch, 'id', 'a batch')} is {loss.item()}: "
            "nothing can be learned from it. Leave it out of the data."
        )


def _order(number, steps, seed):
    """Places of the batches of all steps: all of them before any again."""
    order = []
    turn = 0
    while len(order) < steps:
        draw = torch.Generator().manual_seed(seed * 1_000_003 + turn)
        order += torch.randperm(number, generator=draw).tolist()
        turn += 1
    return order[:steps]


def _moved(maps):
    """How many units are elsewhere than they were."""
    return sum(
        int((order != torch.arange(len(order))).sum())
        for order in maps.values()
    )


def _digests(cost):
    return {
        name: digest({key: one[key] for key in one})
        for name, one in cost.items()
    }


def _content_of_map(architecture):
    """What describes an architecture: files, and not where they are."""
    if not isinstance(architecture, (str, Path)):
        return str(architecture)
    path = Path(architecture)
    if path.suffix not in MAP_SUFFIXES or not path.is_file():
        return str(architecture)  # the name of a map of the package
    return [content_of(file) for file in (path, *parts_beside(path))]


def _text_of(about):
    """What decides the outcome, as text."""
    return json.dumps(about, sort_keys=True, default=str)


def _check_map(path, about):
    """Raises where a finished map is that of another learning."""
    with open_weights(path) as stored:
        if stored.metadata.get("about") != about:
            raise ValueError(
                f"{path}, metadata 'about': this map was learned of other "
                f"models, on other data or in another way. {_ANEW}"
            )
        try:
            verify_own_hash(stored)
        except ChangedContent as error:
            raise ChangedContent(f"{error} {_ANEW}") from None


def _resume(path, learner, about, learning):
    """The state of a learning that was stopped, or the beginning."""
    if not run_on_main(path.exists):
        return [], {}, 0
    state = load_state(path, _ANEW)
    if not isinstance(state, dict) or not STATE <= set(state):
        raise ValueError(f"{path} is no state of a learned matching. {_ANEW}")
    if state["about"] != about:
        raise ValueError(
            f"{path}, key 'about': this state is of other models, other data "
            f"or another way of learning. {_ANEW}"
        )
    history = _history(state["history"], f"{path}, key 'history'")
    done = whole(0)(state["done"], f"{path}, key 'done'")
    best = mapped(_order_of_units)(state["best"], f"{path}, key 'best'")
    every = learning["check_every"]
    looks = sorted({*range(0, learning["steps"], every), learning["steps"]})
    if done not in looks or [row["step"] for row in history] != [
        step for step in looks if step <= done
    ]:
        raise ValueError(
            f"{path}, key 'history': expected a row for every {every} steps "
            f"up to {done!r}. {_ANEW}"
        )
    try:
        learner.check_map(best)
        learner.load_state_dict(state)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise ValueError(
            f"{path}: not a state of this learning ({error}). {_ANEW}"
        ) from error
    ddp_barrier()  # nobody writes while another reads
    logger.info(f"Learned matching: {done} steps are in {path}.")
    # the look at the selection sets is taken again, and noted once
    return [row for row in history if row["step"] < done], best, done


def _order_of_units(value, where):
    """The order of a space."""
    if isinstance(value, torch.Tensor) and value.dtype == torch.int64:
        return value
    raise ValueError(f"{where}: expected orders of units.")
