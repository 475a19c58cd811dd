"""Settings shared by every test: no network, few threads, a fixed seed."""

import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest  # noqa: E402
import torch  # noqa: E402

from speechbrain_merge.training import forget_earlier_saves  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
SPEECH = ROOT.parent / "shared" / "speech"

LONGEST = (
    "study/test_same_numbers.py",
    "recipes/test_recipes_run.py",
    "recipes/test_study_jobs.py",
    "recipes/test_study.py",
    "recipes/test_conformer.py",
    "recipes/test_continual.py",
    "docs/test_examples.py",
    "docs/test_site.py",
    "ranks/test_ranks.py",
    "recipes/test_cl_masr.py",
    "recipes/test_wav2vec2.py",
    "recipes/test_wav2vec2_attention.py",
    "pool/test_kill.py",
    "test_kills.py",
    "brain/test_mixin.py",
    "brain/test_statistics.py",
    "ranks/test_at_once.py",
    "docs/test_tutorial.py",
)
"""What takes longest, the longest first."""

# tests share the builders of tests/tiny_models.py
sys.path.insert(0, str(Path(__file__).resolve().parent))


def pytest_collection_modifyitems(items):
    """The longest begin first, so that no process is left alone with one."""
    places = {f"tests/{name}": place for place, name in enumerate(LONGEST)}
    items.sort(
        key=lambda item: places.get(item.nodeid.split("::")[0], len(places))
    )


@pytest.fixture(autouse=True)
def quick_saves():
    """A save takes as long as in a process that has not saved before.

    `save_and_keep_only` looks at all checkpoints twice for each save before it
    in the same process (docs/upstream/08_mutable_default), of which a process
    of tests has hundreds.
    """
    forget_earlier_saves()


@pytest.fixture(autouse=True)
def fixed_seed():
    """Every test starts from the same random state."""
    torch.manual_seed(0)


@pytest.fixture
def shared_speech():
    """The folder of real recorded speech beside the checkout."""
    if not (SPEECH / "csv").is_dir():
        pytest.skip(f"needs real speech in {SPEECH} (see its README)")
    return SPEECH
