"""Installs speechbrain_merge: model merging for SpeechBrain recipes."""

from pathlib import Path

from setuptools import find_packages, setup

EXTRAS = {
    # text post-processing of Whisper recipes
    "whisper": ["transformers>=4.45", "num2words>=0.5.12"],
    # optimal-transport fusion, Sliced Wasserstein layer selection
    "transport": ["POT>=0.9.3"],
    # figures
    "plots": ["matplotlib>=3.6"],
    # CMA-ES over merge coefficients
    "search": ["cma>=3.3"],
    # studies on a cluster
    "cluster": ["submitit>=1.5"],
}
EXTRAS["dev"] = sorted(
    {need for needs in EXTRAS.values() for need in needs}
) + [
    "codespell==2.3.0",
    "hypothesis>=6.100",
    "jiwer>=3.0",
    "mypy==2.4.1",
    "peft>=0.13",
    "pytest>=8",
    "pytest-xdist>=3.5",
    "ruff==0.12.4",
    "types-PyYAML>=6.0.12",
    "yamllint==1.35.1",
]

setup(
    name="speechbrain_merge",
    version="0.1.0",
    description="Model merging for speech recognition, inside SpeechBrain",
    long_description=Path("README.md").read_text(encoding="utf-8")
    if Path("README.md").exists()
    else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["speechbrain_merge*"]),
    # symmetry maps
    package_data={"speechbrain_merge.methods.transport": ["maps/*.yaml"]},
    python_requires=">=3.9",
    install_requires=[
        "speechbrain>=1.1.2",
        "torch>=2.7.1",
        "safetensors>=0.4.3",
        "hyperpyyaml>=1.2.2",
        "numpy>=1.24",
        "scipy>=1.10",
        "tqdm>=4.60",
    ],
    extras_require=EXTRAS,
    entry_points={
        "console_scripts": ["speechbrain-merge=speechbrain_merge.cli:main"],
    },
)
