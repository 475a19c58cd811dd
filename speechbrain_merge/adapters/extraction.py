r"""An adapter out of a model that was fine-tuned in full.

Of each linear layer, the task vector τ = θ − θ_0 is replaced by the nearest
product B·A of a given rank (Eckart and Young 1936): base and adapter together
are nearly the expert, in a few megabytes. What else changed (biases, norms,
convolutions) is small, and kept as it is.

Authors
 * The speechbrain_merge authors 2026
"""

import math
from functools import partial
from pathlib import Path
from typing import Any, Optional, Union

import torch

from speechbrain.utils.logger import get_logger
from speechbrain_merge.adapters.writing import (
    check_adapter_output,
    write_adapter,
)
from speechbrain_merge.methods import MergeMethod
from speechbrain_merge.methods.parameters import check_choice, check_whole
from speechbrain_merge.weights import (
    Entry,
    Weights,
    check_compatible,
    matches,
    open_weights,
    part,
)
from speechbrain_merge.weights.adapter_files import factor_names, peft_config
from speechbrain_merge.weights.low_rank import FORMATS, speechbrain_metadata

logger = get_logger(__name__)


def extract_lora(
    expert: Any,
    base: Any,
    output: Union[str, Path],
    rank: int,
    format: str = "peft",
    leave_out: Union[list, tuple] = (),
    same_base: bool = True,
    workers: int = 1,
    progress: bool = True,
) -> Path:
    """Makes a LoRA adapter of a fine-tuned model.

    Arguments
    ---------
    expert : object
        The fine-tuned model: what ``open_weights`` opens.
    base : object
        The model that it was fine-tuned from, likewise.
    output : str or Path
        A folder for PEFT, a ``.safetensors`` file for SpeechBrain.
    rank : int
        Of each layer; less where a matrix is smaller.
    format : str
        ``"peft"`` or ``"speechbrain"``.
    leave_out : list of str
        Patterns (``speechbrain_merge.weights.matches``) of tensors that stay
        as they are in the base.
    same_base : bool
        Whether a model that was not fine-tuned from this base is refused, see
        ``speechbrain_merge.belonging``.
    workers : int
        Threads that write.
    progress : bool
        Whether to show a bar.

    Returns
    -------
    path : Path
        ``output``; its record has ``error`` among the parameters: the share
        of the linear layers' task vectors, in the Frobenius norm, that the
        rank left out.

    Raises
    ------
    IncompatibleWeights
        When expert and base are different models.
    ValueError
        When nothing changed, or something that the format cannot hold.
    FileExistsError
        When something else than an adapter is in the place of the output.

    Example
    -------
    >>> from speechbrain_merge.weights import fold
    >>> base = {"fc.weight": torch.zeros(3, 2)}
    >>> expert = {"fc.weight": torch.tensor([[1.0, 2.0]]).expand(3, 2)}
    >>> folder = getfixture("tmp_path") / "adapter"
    >>> path = extract_lora(expert, base, folder, rank=1, progress=False)
    >>> fold(path, base=base)["fc.weight"][0].round(decimals=5)
    tensor([1., 2.])
    """
    check_whole(rank, "rank", at_least=1)
    check_choice(format, "format", FORMATS)
    for pattern in leave_out:
        matches("weight", pattern)  # a misspelt pattern stops here
    extraction = LoraExtraction(rank, format, leave_out)
    modules = [
        each for each in (base, expert) if isinstance(each, torch.nn.Module)
    ]
    with open_weights(expert) as weights, open_weights(base) as original:
        check_adapter_output(Path(output), format, [weights, original])
        extraction.read(weights, original, modules)
    sources = {
        "experts": [expert],
        "base": base,
        "same_base": same_base,
        "workers": workers,
        "progress": progress,
    }
    return write_adapter(extraction, sources, Path(output))


class LoraExtraction(MergeMethod):
    """The extraction, as the engine sees it: one call, one object.

    Arguments
    ---------
    rank : int
        Of each layer.
    format : str
        "peft" or "speechbrain".
    leave_out : list of str
        Patterns of tensors that stay as in the base.
    """

    name = "extract_lora"
    needs_base = True
    maximum_experts = 1

    def __init__(self, rank, format, leave_out):
        super().__init__()
        self.rank, self.format = rank, format
        self.leave_out = list(leave_out)
        self.error: Optional[float] = None

    def configuration(self):
        """The parameters, and what the rank left out."""
        return {
            "rank": self.rank,
            "format": self.format,
            "leave_out": self.leave_out,
            "error": self.error,
        }

    def read(self, expert, base, modules):
        """Works the factors out, and keeps them: they are small.

        What they leave out goes on record before they are written.

        Arguments
        ---------
        expert : Weights
            The fine-tuned model.
        base : Weights
            Its base.
        modules : list of torch.nn.Module
            The models themselves, if known: they say what is a linear layer.
            Else names and shapes do.
        """
        check_compatible([expert], base)
        self._kinds = {
            f"{path}.weight": type(layer)
            for module in modules
            for path, layer in module.named_modules()
        }
        changed = [
            name
            for name in expert
            if not torch.equal(expert[name], base[name])
            and not any(matches(name, each) for each in self.leave_out)
        ]
        names = set(expert)
        self._ranks, factors, plain = {}, {}, []
        lost = total = 0.0
        for name in changed:
            if not self._is_linear(name, expert.shape(name), names):
                plain.append(name)
                continue
            target = name.removesuffix(".weight")
            up, down, error, norm = _nearest(
                expert[name], base[name], self.rank
            )
            lost, total = lost + error**2, total + norm**2
            self._ranks[target] = up.shape[1]
            factors[target] = (up, down)
        if not factors:
            raise ValueError(
                f"no linear layer of {expert.label} differs from the base "
                f"{base.label}: there is no adapter to extract."
            )
        self.error = math.sqrt(lost / total) if total else 0.0
        logger.info(
            f"Rank {self.rank} leaves out {self.error:.3%} of what "
            f"{len(factors)} linear layers changed (Frobenius norm)."
        )
        if self.format == "speechbrain":
            factors = _padded(factors)
        self._factors = factors
        self._plain = self._places(plain, names)

    def merged(
        self, experts, base=None, labels=None, workers=1, progress=False
    ):
        """The adapter: the factors, and what is kept in full."""
        (expert,) = experts
        entries = {}
        for target, pair in self._factors.items():
            stored = factor_names(self.format, target, None, False)
            for side, tensor in zip(("up", "down"), pair):
                entries[stored[side]] = Entry(
                    tuple(tensor.shape), tensor.dtype, partial(_give, tensor)
                )
        for stored, name in self._plain.items():
            entries[stored] = expert.entry(name)
        return Weights(entries, f"the adapter of {expert.label}")

    def _places(self, plain, names):
        """Stored name to the name of each tensor that is kept in full."""
        inside = {
            "speechbrain": ("adapted_model.", "pretrained_module"),
            "peft": ("base_model.model.", "base_layer"),
        }
        start, wrapped = inside[self.format]
        places, modules = {}, set()
        for name in plain:
            module, _, leaf = name.rpartition(".")
            if module in self._ranks:
                places[f"{start}{module}.{wrapped}.{leaf}"] = name
            elif self.format == "speechbrain":
                places[f"{start}{name}"] = name
            else:
                self._check_module(module, name)
                modules.add(module)
        # PEFT loads the whole of each module that it trains in full, and takes
        # every module whose name ends alike
        self._modules = sorted(modules)
        ends = tuple(self._modules)
        for name in sorted(names) if ends else []:
            words = name.split(".")
            paths = (".".join(words[:n]) for n in range(1, len(words)))
            if any(path.endswith(ends) for path in paths):
                places[f"{start}{name}"] = name
        self._biases = any(f".{wrapped}." in place for place in places)
        return places

    def _check_module(self, module, name):
        """Refuses what PEFT cannot train in full."""
        paths = {
            ".".join(words[:n])
            for words in (target.split(".") for target in self._ranks)
            for n in range(1, len(words) + 1)
        }
        within = any(path.endswith(module) for path in paths)
        embedding = self._is_embedding(name)
        if not embedding and module and not within:
            return
        why = (
            "is an embedding, which an output layer may share"
            if embedding
            else "stands beside layers that get an adapter"
        )
        raise ValueError(
            f"'{name}' changed and {why}: PEFT cannot keep it in full. Give "
            f"format='speechbrain', or leave it as in the base: "
            f"leave_out=['*{name}']."
        )

    def metadata(self):
        """What SpeechBrain does not store of an adapter."""
        stems = [f"adapted_model.{target}" for target in self._ranks]
        return speechbrain_metadata(stems, max(self._ranks.values()), 1.0)

    def config(self):
        """PEFT's configuration."""
        return peft_config(
            {target: (rank, 1.0) for target, rank in self._ranks.items()},
            bias="lora_only" if self._biases else "none",
            modules_to_save=self._modules or None,
        )

    def _is_embedding(self, name):
        kind = self._kinds.get(name)
        if kind is not None:
            return issubclass(kind, torch.nn.Embedding)
        return part(name).role == "embedding"

    def _is_linear(self, name, shape, names):
        """Whether a tensor is the weight of a linear layer."""
        module, _, leaf = name.rpartition(".")
        parent = module.rpartition(".")[0]
        kind = self._kinds.get(name)
        if kind is not None and not issubclass(kind, torch.nn.Linear):
            return False
        return (
            leaf == "weight"
            and bool(module)
            and len(shape) == 2
            and not self._is_embedding(name)
            # torch's attention reads the weight of its own output layer
            and not {f"{parent}.in_proj_weight", f"{parent}.in_proj_bias"}
            & names
        )


def _nearest(expert, base, rank):
    """B and A of a task vector, in its dtype; the error and the norm."""
    vector = expert.to(torch.float64) - base.to(torch.float64)
    u, values, v = torch.linalg.svd(vector, full_matrices=False)
    kept = min(rank, len(values))
    root = values[:kept].sqrt()
    return (
        (u[:, :kept] * root).to(expert.dtype),
        (root[:, None] * v[:kept]).to(expert.dtype),
        values[kept:].norm().item(),
        values.norm().item(),
    )


def _padded(factors):
    """All of one rank, as SpeechBrain has it: zeros change nothing."""
    most = max(up.shape[1] for up, _ in factors.values())
    pad = torch.nn.functional.pad
    return {
        target: (
            pad(up, (0, most - up.shape[1])),
            pad(down, (0, 0, 0, most - down.shape[0])),
        )
        for target, (up, down) in factors.items()
    }


def _give(tensor):
    return tensor
