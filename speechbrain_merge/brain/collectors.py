"""Collectors of gradients, layer inputs and activations, for passes over data.

A collector is told which modules there are and which of their tensors matter,
sees batch after batch, and gives a mean of each; or it keeps a part of what it
sees. ``speechbrain_merge.brain.statistics`` chooses the batches and writes the
result to a file.

Example
-------
>>> layer = torch.nn.Linear(2, 1)
>>> grams = GramCollector(None, None, {"model": layer}, {"model.weight"})
>>> _ = layer(torch.tensor([[1.0, 2.0], [3.0, 0.0]]))
>>> grams.close()
>>> grams.means()["model.weight"]
tensor([[5., 1.],
        [1., 2.]])

Authors
 * The speechbrain_merge authors 2026
"""

import torch

from speechbrain_merge.methods.transport.activations import UnitActivations


class FisherCollector:
    """Adds up squared gradients of the Brain's loss."""

    def __init__(self, brain, stage, modules, names):
        self.brain, self.stage, self.count = brain, stage, 0
        self.parameters = {
            f"{prefix}.{name}": parameter
            for prefix, module in modules.items()
            for name, parameter in module.named_parameters()
            if parameter.requires_grad and f"{prefix}.{name}" in names
        }
        self.sums = {}

    def see(self, batch):
        """One more gradient."""
        with torch.enable_grad():
            predictions = self.brain.compute_forward(batch, self.stage)
            loss = self.brain.compute_objectives(predictions, batch, self.stage)
        if not torch.isfinite(loss):
            raise ValueError(
                f"The loss of {getattr(batch, 'id', 'a batch')} is {loss}: its "
                "gradient cannot be used. Leave it out of the data."
            )
        gradients = torch.autograd.grad(
            loss, list(self.parameters.values()), allow_unused=True
        )
        for name, gradient in zip(self.parameters, gradients):
            if gradient is not None:
                square = gradient.detach().square()
                if name in self.sums:
                    self.sums[name] += square
                else:
                    self.sums[name] = square
        self.count += 1

    def means(self):
        """The mean squared gradient of each parameter."""
        return {
            name: self.sums[name].div_(self.count)
            if name in self.sums
            else torch.zeros_like(parameter)
            for name, parameter in self.parameters.items()
        }

    def close(self):
        """Does nothing: there are no hooks to remove."""


class GramCollector:
    """Adds up ``XᵀX`` of the inputs of linear layers."""

    def __init__(self, brain, stage, modules, names):
        self.brain, self.stage = brain, stage
        self.sums, self.counts, self.handles = {}, {}, []
        owners = {}
        for module in modules.values():
            parameters = module.named_parameters(remove_duplicate=False)
            for _, parameter in parameters:
                owners[id(parameter)] = owners.get(id(parameter), 0) + 1
        for prefix, module in modules.items():
            for path, layer in module.named_modules():
                name = ".".join(filter(None, (prefix, path, "weight")))
                if not isinstance(layer, torch.nn.Linear) or name not in names:
                    continue
                if owners.get(id(layer.weight), 1) == 1:
                    self.handles.append(
                        layer.register_forward_pre_hook(self._hook(name))
                    )

    def _hook(self, name):
        """A hook that sees the inputs of a layer."""

        def look(layer, inputs):
            rows = inputs[0].detach().reshape(-1, inputs[0].shape[-1])
            rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
            gram = rows.T @ rows
            if name in self.sums:
                self.sums[name] += gram
                self.counts[name] += len(rows)
            else:
                self.sums[name], self.counts[name] = gram, len(rows)

        return look

    def see(self, batch):
        """Lets the layers see one more batch."""
        with torch.no_grad():
            predictions = self.brain.compute_forward(batch, self.stage)
            # some recipes run layers here, such as a decoder for its loss
            self.brain.compute_objectives(predictions, batch, self.stage)

    def means(self):
        """The mean over all rows that each layer was given."""
        return {
            name: total.div_(max(self.counts[name], 1))
            for name, total in self.sums.items()
        }

    def close(self):
        """Takes the hooks out again."""
        for handle in self.handles:
            handle.remove()


class ActivationCollector:
    """Keeps what the units do on some frames of each utterance."""

    # as padding is not speech
    one_at_a_time = True
    # What is kept of a pass: files that an earlier version wrote are others
    reading = "views of attention's inputs and outputs, of one scale"

    def __init__(self, brain, stage, modules, names, **options):
        self.brain, self.stage = brain, stage
        self.units = UnitActivations(torch.nn.ModuleDict(modules), **options)

    def see(self, batch):
        """Keeps the activations on one more utterance."""
        with torch.no_grad():
            self.brain.compute_forward(batch, self.stage)
        self.units.keep()

    def means(self):
        """Not means, but the activations themselves, by space."""
        return self.units.matrices()

    def close(self):
        """Takes the hooks out again."""
        self.units.close()
