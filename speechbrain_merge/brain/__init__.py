"""Everything that runs a SpeechBrain Brain.

The merge stage (``mixin``) between the recipe's hooks (``recipe_hooks``),
utterances in fixed batches and the errors on them (``batches``, ``scorer``),
what a recipe prepares for a run (``run``), tests by domain (``domains``),
statistics of what experts see (``statistics``), the representations of their
layers (``representations``), coefficients learned from data
(``coefficient_learning``), loss and error rate between models (``landscape``).
All go through the recipe's own forward pass.

Authors
 * The speechbrain_merge authors 2026
"""

from speechbrain_merge.brain.mixin import MergeMixin
from speechbrain_merge.brain.run import Run
