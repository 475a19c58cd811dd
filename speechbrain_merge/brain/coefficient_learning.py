r"""AdaMerging in a recipe: a merge's coefficients, learned by gradient.

What ``AdaMerging`` merges with, this learns, on a few hundred batches, without
touching the weights of any expert:

- ``objective="entropy"``: on audio alone. The merged model is made surer of
  what it hears (``speechbrain_merge.brain.entropy``). For a CTC model that is
  all there is to it. A decoder is asked for the next token after tokens that
  the data must have, so give hypotheses as the transcripts there, say those of
  the original.
- ``objective="loss"``: on a development set with transcripts, by the recipe's
  own ``compute_objectives``.

In a ``train.py``, where the stage's method is ``AdaMerging``::

    stage = hparams["merge_stage"]
    experts = stage.chosen()
    learn_coefficients(
        asr_brain,
        stage.method,
        experts,
        experts[0].base,
        {"digits": digits_dev, "telephony": telephony_dev},
        hparams["valid_loader_kwargs"],
        folder=hparams["output_folder"] + "/adamerging",
    )
    asr_brain.merge(stage)
    asr_brain.evaluate(test_data, min_key="WER")

One step takes one batch of each domain and adds up what they say, as the
authors do. The modules are in evaluation mode: no dropout, and running
statistics stay. The Brain is told ``Stage.TRAIN``, since other stages decode.

The same seed gives the same coefficients. With a ``folder``, an interrupted
learning goes on where it was, to the bit, and a finished one is not repeated.
Memory: a model and its gradient, and one tensor of each expert
(``speechbrain_merge.brain.coefficient_gradients``). Under ``torchrun`` each
process goes through the same batches, and one writes.

Authors
 * The speechbrain_merge authors 2026
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import speechbrain as sb
from speechbrain.utils.distributed import ddp_barrier, run_on_main
from speechbrain.utils.logger import get_logger
from speechbrain_merge.brain.batches import FixedBatches
from speechbrain_merge.brain.coefficient_gradients import MergeInModules
from speechbrain_merge.brain.decisive import (
    beside,
    decisive_settings,
    while_running,
)
from speechbrain_merge.brain.entropy import entropy, scores_of
from speechbrain_merge.brain.without_training import without_training
from speechbrain_merge.methods.adamerging import AdaMerging
from speechbrain_merge.methods.bounds import bounded, value_of
from speechbrain_merge.methods.parameters import (
    check_choice,
    check_number,
    check_whole,
)
from speechbrain_merge.records.checked import (
    fields,
    mapped,
    plain_float,
    some,
    whole,
)
from speechbrain_merge.records.fingerprint import fingerprint
from speechbrain_merge.stage.content import decided_by
from speechbrain_merge.weights import digest
from speechbrain_merge.weights.compatibility import is_like
from speechbrain_merge.weights.state_files import load_state, save_state

logger = get_logger(__name__)

OBJECTIVES = ("entropy", "loss")

_ANEW = "Delete the file to learn the coefficients anew."

_history = some(
    fields(
        {
            "step": whole(0),
            "objective": plain_float,
            "coefficients": mapped(mapped(plain_float)),
        }
    )
)


@while_running
def learn_coefficients(
    brain,
    method,
    experts,
    base,
    data,
    loader_kwargs=None,
    objective="entropy",
    steps=500,
    learning_rate=1e-3,
    outputs=None,
    skip_blank=None,
    seed=0,
    folder=None,
    save_every=50,
    decode=None,
):
    """Learns the coefficients of an ``AdaMerging`` on data.

    Arguments
    ---------
    brain : speechbrain.Brain
        With ``MergeMixin``. Its modules hold the merge afterwards.
    method : AdaMerging
        Its coefficients are changed, from what they are.
    experts : list
        Candidates, or other sources of ``open_weights``, with names
        ``<module>.<parameter>``.
    base : object
        What they were fine-tuned from, e.g. ``experts[0].base``.
    data : Dataset, DataLoader or dict
        What to run over; a dict names one set for each domain.
    loader_kwargs : dict, optional
        As for ``fit``: batch size and so on. Batches are made once; their
        order is drawn.
    objective : str
        ``"entropy"`` or ``"loss"``.
    steps : int
        How many steps in all, those before an interruption included.
    learning_rate : float
        Of Adam; the default is the paper's.
    outputs : str or callable, optional
        For entropy, where the scores and their lengths are: see
        ``speechbrain_merge.brain.entropy.scores_of``. A recipe with a Whisper
        decoder gives ``"tokens_eos"``.
    skip_blank : int, optional
        For entropy of CTC, the blank: frames where it wins do not count.
    seed : int
        Of the order of batches, and of whatever is random in the Brain.
    folder : str or Path, optional
        Where the state is kept. Default: nowhere.
    save_every : int
        Steps between two states.
    decode : str, optional
        ``"valid"`` or ``"test"`` tells the Brain that stage instead.

    Returns
    -------
    history : list of dict
        For each step its ``step``, from 1, the ``objective`` before it, and
        the ``coefficients`` after it, expert to group to λ. What
        ``speechbrain_merge.report.plot_learned_coefficients`` draws.

    Raises
    ------
    ValueError
        When the method has no coefficients to learn, an argument is out of
        range, or the objective is not finite.
    """
    if not isinstance(method, AdaMerging):
        raise ValueError(
            "Coefficients are learned of an AdaMerging, got "
            f"{type(method).__name__}."
        )
    check_choice(objective, "objective", OBJECTIVES)
    check_whole(steps, "steps", at_least=1)
    check_whole(save_every, "save_every", at_least=1)
    check_number(learning_rate, "learning_rate", above=0)
    check_whole(seed, "seed")
    labels = [
        str(getattr(expert, "name", f"expert {number}"))
        for number, expert in enumerate(experts)
    ]
    stage = sb.Stage.TRAIN if decode is None else sb.Stage[decode.upper()]
    batches = FixedBatches(brain, data, loader_kwargs)
    about = None
    if folder is not None:
        about = _about(brain, method, experts, base, batches, stage)
        about |= {
            "objective": objective,
            "learning_rate": learning_rate,
            "outputs": fingerprint(outputs),
            "skip_blank": skip_blank,
            "seed": seed,
            "stage": stage.name,
        }

    def measure(batch):
        """The objective on one batch."""
        predictions = brain.compute_forward(batch, stage)
        if objective == "loss":
            return brain.compute_objectives(predictions, batch, stage)
        return entropy(*scores_of(predictions, batch, outputs), skip_blank)

    with ExitStack() as stack:
        merge = stack.enter_context(
            MergeInModules(brain, method, experts, base, labels)
        )
        optimizer = torch.optim.Adam([method.coefficients], lr=learning_rate)
        history = []
        if about is not None:
            # Settings may differ by rank, such as the name of a device
            about = run_on_main(_text_of, args=[about])
            path = _path(folder, about)
            history = _resume(path, method, optimizer, steps, about, labels)
            ddp_barrier()  # nobody writes while another reads
        stack.enter_context(without_training(brain, stage))
        done = len(history)
        domains = len(batches.loaders)
        drawn = iter(batches.load(_order(batches, done, steps, seed)))
        bar = tqdm(
            range(done, steps),
            total=steps,
            initial=done,
            desc=f"learn coefficients by {objective}",
            disable=brain.noprogressbar,
        )
        for step in bar:
            torch.manual_seed(seed * 1_000_003 + step)
            merge.fill()
            total = 0.0
            for _ in range(domains):
                batch = next(drawn)
                with torch.enable_grad():
                    value = measure(batch)
                if not torch.isfinite(value):
                    raise ValueError(
                        f"The {objective} of {getattr(batch, 'id', 'a batch')} "
                        f"is {value.item()}: nothing can be learned from it. "
                        "Leave it out of the data."
                    )
                value.backward()
                total += value.item()
            optimizer.zero_grad()
            merge.backward()
            optimizer.step()
            history.append(_row(step + 1, total, method, labels))
            bar.set_postfix({objective: total})
            last = step + 1 == steps
            if about is not None and (last or (step + 1) % save_every == 0):
                run_on_main(
                    _save, args=[path, method, optimizer, history, about]
                )
        merge.fill()
    return history


def _order(batches, done, steps, seed):
    """Places of the batches of all steps to come, domain by domain."""
    places = {}
    for place, (domain, _) in enumerate(batches.places):
        places.setdefault(domain, []).append(place)

    def shuffled(number, turn):
        generator = torch.Generator().manual_seed(
            (seed * 1009 + number) * 1_000_003 + turn
        )
        own = list(places.values())[number]
        draw = torch.randperm(len(own), generator=generator)
        return [own[index] for index in draw.tolist()]

    order, turns = [], {}
    for step in range(done, steps):
        for number, own in enumerate(places.values()):
            turn, index = divmod(step, len(own))
            if turns.get(number, (None, None))[0] != turn:
                turns[number] = (turn, shuffled(number, turn))
            order.append(turns[number][1][index])
    return order


def _row(step, total, method, labels):
    values = method.values().tolist()
    return {
        "step": step,
        "objective": total,
        "coefficients": {
            label: dict(zip(method.groups, row))
            for label, row in zip(labels, values)
        },
    }


def _about(brain, method, experts, base, batches, stage):
    """Everything that decides the outcome, except the number of steps."""
    return {
        **decided_by(method),
        "method": method.configuration(),
        "experts": [
            getattr(expert, "digest", None) or digest(expert)
            for expert in experts
        ],
        "base": digest(base),
        "data": batches.key(),
        "hparams": decisive_settings(brain, stage=stage),
        "beside": beside(brain, base),
    }


def _text_of(about):
    """What decides the outcome, as text."""
    return json.dumps(about, sort_keys=True, default=str)


def _path(folder, about):
    key = hashlib.sha256(about.encode()).hexdigest()[:16]
    return Path(folder) / f"coefficients-{key}.pt"


def _resume(path, method, optimizer, steps, about, labels):
    """Loads the state of an earlier run; returns the history so far."""
    if not run_on_main(path.exists):
        return []
    state = _read_state(path, method, optimizer, about, labels)
    history = state["history"][:steps]
    stored = state["coefficients"]
    if len(history) < len(state["history"]):
        # fewer steps than were made before: λ as it was then
        rows = history[-1]["coefficients"].values()
        stored = torch.tensor(
            [
                [value_of(row[group], method.lambda_param) for group in row]
                for row in rows
            ],
            dtype=stored.dtype,
        )
    with torch.no_grad():
        method.coefficients.copy_(stored)
    optimizer.load_state_dict(state["optimizer"])
    logger.info(f"Coefficients: {len(history)} steps are in {path}.")
    return history


def _read_state(path, method, optimizer, about, labels):
    """The state in a file, if it is one of this learning, and whole."""
    state = load_state(path, _ANEW)
    wanted = {"coefficients", "optimizer", "history", "about"}
    if not isinstance(state, dict) or not wanted <= state.keys():
        raise ValueError(
            f"{path} is no state of learned coefficients: it needs "
            f"{', '.join(sorted(wanted))}. {_ANEW}"
        )
    if state["about"] != about:
        raise ValueError(
            f"{path}, key 'about': these coefficients were learned from other "
            f"models, other data or in another way. {_ANEW}"
        )
    where = f"{path}, key 'history'"
    history = state["history"] = _history(state["history"], where)
    for number, row in enumerate(history, start=1):
        found = {name: list(of) for name, of in row["coefficients"].items()}
        expected = {name: list(method.groups) for name in labels}
        if row["step"] != number or found != expected:
            raise ValueError(
                f"{where}, entry {number}: expected step {number} with the "
                f"coefficients of {', '.join(labels)}. {_ANEW}"
            )
    stored, known = state["coefficients"], method.coefficients
    if not is_like(stored, known):
        raise ValueError(
            f"{path}, key 'coefficients': expected finite numbers, a tensor of "
            f"shape {list(known.shape)} and {known.dtype}. {_ANEW}"
        )
    values = bounded(stored, method.lambda_param).tolist()
    last = [list(of.values()) for of in history[-1]["coefficients"].values()]
    if values != last:
        raise ValueError(
            f"{path}, key 'coefficients': not those of the last entry of "
            f"'history'. {_ANEW}"
        )
    _check_optimizer(state["optimizer"], optimizer, known, path)
    return state


def _check_optimizer(stored, optimizer, known, path):
    """Raises a ValueError unless a state is one of this very optimizer."""
    found: Any = stored if isinstance(stored, Mapping) else {}
    groups = optimizer.state_dict()["param_groups"]
    moments = found.get("state")
    moments = moments.get(0) if isinstance(moments, Mapping) else None
    step = moments.get("step") if isinstance(moments, Mapping) else None
    if (
        found.get("param_groups") != groups
        or len(found["state"]) != 1
        or not all(
            is_like(moments.get(key), known)
            for key in ("exp_avg", "exp_avg_sq")
        )
        or not isinstance(step, torch.Tensor)
        or not is_like(step, torch.tensor(0.0))
        or set(moments) != {"step", "exp_avg", "exp_avg_sq"}
    ):
        raise ValueError(
            f"{path}, key 'optimizer': not the state of this optimizer. {_ANEW}"
        )


def _save(path, method, optimizer, history, about):
    """Writes the state."""
    save_state(
        path,
        {
            "coefficients": method.coefficients.detach(),
            "optimizer": optimizer.state_dict(),
            "history": history,
            "about": about,
        },
    )
