"""Installs speechbrain_merge: model merging for SpeechBrain recipes."""

import runpy
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
    # the semantic score beside the error rate
    "semantic": ["jellyfish>=1.0", "transformers>=4.45"],
    # a merged Whisper for faster-whisper
    "ctranslate2": ["ctranslate2>=4.4", "transformers>=4.45"],
    # studies on a cluster
    "cluster": ["submitit>=1.5"],
    # signatures of merged models; model-signing imports pyOpenSSL and does not
    # ask for it
    "sign": [
        "model-signing>=1.1.1; python_version >= '3.10'",
        "pyOpenSSL>=24; python_version >= '3.10'",
    ],
    # the semantic score
    "semantic": ["jellyfish>=1.0", "transformers>=4.45"],
    # the site, and the tutorial
    "docs": [
        "sphinx>=7.4",
        "myst-nb>=1.1",
        "furo>=2024.8",
        "nbclient>=0.10",
        "ipykernel>=6.29",
    ],
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
    # whisper.cpp, for the test of its files with real weights
    "pywhispercpp>=1.5",
    "ruff==0.12.4",
    "selenium>=4.20",
    "setuptools>=70.1",
    "types-PyYAML>=6.0.12",
    "yamllint==1.35.1",
]
PACKAGE = Path("speechbrain_merge")

setup(
    name="speechbrain_merge",
    version=runpy.run_path(str(PACKAGE / "version.py"))["__version__"],
    description="Model merging for speech recognition, inside SpeechBrain",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3",
        "Topic :: Multimedia :: Sound/Audio :: Speech",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    keywords="speech recognition, model merging, SpeechBrain, PyTorch",
    packages=find_packages(include=["speechbrain_merge*"]),
    package_data={
        # type hints for users' checkers, fragments of YAML to include
        "speechbrain_merge": ["py.typed", "hparams/*.yaml", "hparams/*.md"],
        "speechbrain_merge.report.page": ["*.html", "*.css", "*.js"],
        # symmetry maps
        "speechbrain_merge.methods.transport": ["maps/*.yaml"],
    },
    python_requires=">=3.9",
    install_requires=[
        "speechbrain>=1.1.2",
        "torch>=2.7.1",
        "blake3>=1.0",
        "safetensors>=0.4.3",
        "hyperpyyaml>=1.2.2",
        "huggingface_hub>=0.23",
        "numpy>=1.24",
        "packaging>=21",
        "PyYAML>=6.0",
        "ruamel.yaml>=0.17.28",
        "scipy>=1.10",
        "sentencepiece>=0.1.99",
        "tqdm>=4.60",
    ],
    extras_require=EXTRAS,
    entry_points={
        "console_scripts": ["speechbrain-merge=speechbrain_merge.cli:main"],
    },
)
