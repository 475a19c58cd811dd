"""Model merging for speech recognition, inside SpeechBrain.

Collect checkpoints (``CheckpointPool``), choose and merge them by error rate
(``MergeStage``), in the recipe that trained them (``MergeMixin``); merge again
with a domain more or less (``remerge``); or merge files by hand (``merge``), LoRA adapters as adapters
(``merge_adapters``).

Importing the package is quick: each of these names, and each of the package's
modules, is loaded when it is first used (PEP 562).

Example
-------
>>> import speechbrain_merge
>>> speechbrain_merge.methods.Average().name
'average'

Authors
 * The speechbrain_merge authors 2026
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from speechbrain_merge.version import __version__

if TYPE_CHECKING:
    from speechbrain_merge.adapters import extract_lora, merge_adapters
    from speechbrain_merge.brain import MergeMixin, Run
    from speechbrain_merge.brain.coefficient_learning import learn_coefficients
    from speechbrain_merge.brain.landscape import Landscape
    from speechbrain_merge.engine import merge, provenance
    from speechbrain_merge.evaluation.barrier import barrier
    from speechbrain_merge.pool import CheckpointPool, read_merges
    from speechbrain_merge.records.signing import Signer, verify_signature
    from speechbrain_merge.stage import MergeResult, MergeStage
    from speechbrain_merge.stage.extending import remerge

_HOMES = {
    "CheckpointPool": "pool",
    "Landscape": "brain.landscape",
    "MergeMixin": "brain",
    "MergeResult": "stage",
    "MergeStage": "stage",
    "Run": "brain",
    "Signer": "records.signing",
    "barrier": "evaluation.barrier",
    "extract_lora": "adapters",
    "learn_coefficients": "brain.coefficient_learning",
    "merge": "engine",
    "merge_adapters": "adapters",
    "provenance": "engine",
    "read_merges": "pool",
    "remerge": "stage.extending",
    "verify_signature": "records.signing",
}
"""The module of each public name."""

__all__ = [
    "CheckpointPool",
    "Landscape",
    "MergeMixin",
    "MergeResult",
    "MergeStage",
    "Run",
    "Signer",
    "__version__",
    "barrier",
    "extract_lora",
    "learn_coefficients",
    "merge",
    "merge_adapters",
    "provenance",
    "read_merges",
    "remerge",
    "verify_signature",
]


def __getattr__(name: str) -> Any:
    """Loads a public name, or a module of the package, at its first use."""
    if name in _HOMES:
        home = importlib.import_module(f"{__name__}.{_HOMES[name]}")
        globals()[name] = value = getattr(home, name)
        return value
    module = f"{__name__}.{name}"
    if not name.startswith("_") and importlib.util.find_spec(module):
        return importlib.import_module(module)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return sorted({*globals(), *__all__})
