"""Settings shared by every test: no network, few threads, a fixed seed."""

import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest  # noqa: E402
import torch  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
SPEECH = ROOT.parent / "shared" / "speech"

# tests share the builders of tests/tiny_models.py
sys.path.insert(0, str(Path(__file__).resolve().parent))


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
