"""Passes of a Brain over data that teach something of models, not to them.

What an expert's inputs and gradients are like (``statistics``), what its layers
make of paired data (``representations``), how loss and error rate lie between
models (``landscape``), and which coefficients data ask for
(``coefficient_learning``). All go through the recipe's own forward pass.

Authors
 * The speechbrain_merge authors 2026
"""
