"""Checks the diffs of docs/ on SpeechBrain's own recipes.

    python tests/upstream/check_recipes.py CHECKOUT [NAME ...]

with the path of a SpeechBrain checkout, and perhaps the names of a few of the
recipes below. Each diff is applied to a copy of the recipe, which then runs as
it is: its own script, YAML, hooks and data preparation, with tiny models and
on miniature data. Compared are, tensor by tensor, the weights with which each
test batch is really evaluated and the merged file. Needs no network.

Run by hand: the recipes are no part of this repository.

Authors
 * The speechbrain_merge authors 2026
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(HERE.parent), str(ROOT)]

import torch  # noqa: E402
from miniature import Miniature, build  # noqa: E402

from speechbrain_merge.pool import read_pool  # noqa: E402
from speechbrain_merge.weights import open_weights  # noqa: E402

EPOCHS = 3

# Such models all have the same error rate: they are to be merged all the same
SEARCH = "search: !new:speechbrain_merge.search.GreedySearch"
EDITS = {SEARCH: f"{SEARCH} {{accept: le}}"}


@dataclass
class Recipe:
    """A recipe, and what makes it small.

    Arguments
    ---------
    diff : str
        Path of its diff.
    folder : str
        Under `recipes/`.
    script : str
        What is run.
    hparams : str
        Its YAML.
    overrides : dict
        Key to value; `{pieces}`, `{models}` … are filled in.
    edits : dict
        Text of the YAML to the text that takes its place, where overrides
        cannot say it.
    """

    diff: str
    folder: str
    script: str
    hparams: str
    overrides: dict = field(default_factory=dict)
    edits: dict = field(default_factory=lambda: EDITS)


EVERYWHERE = {
    "number_of_epochs": EPOCHS,
    "output_folder": "{output}",
    "data_folder": "{data}",
    "num_workers": 0,
    "precision": "fp32",
}
LIBRISPEECH = {**EVERYWHERE, "train_splits": "[train-clean-100]"}
TABLES = {
    "skip_prep": True,
    "train_csv": "{train}",
    "valid_csv": "{dev}",
    "test_csv": "[{test_clean}, {test_other}]",
}
SMALL = {
    "d_model": 16,
    "nhead": 2,
    "num_encoder_layers": 1,
    "output_neurons": "{pieces}",
    "noam_annealing": "{n_warmup_steps: 3}",
    "lr_adam": 0.01,
    "batch_size": 2,
    "grad_accumulation_factor": 1,
    "avg_checkpoints": 2,
}
DECODED = {
    "num_decoder_layers": 1,
    "valid_search_interval": 1,
    "valid_beam_size": 2,
    "test_beam_size": 2,
    "max_decode_ratio": 0.2,
}
LANGUAGE_MODEL = (
    "{d_model: 16, nhead: 2, num_encoder_layers: 1, d_ffn: 32, dropout: 0.0}"
)
DYNAMIC = {
    "max_batch_length_train": 5,
    "max_batch_length_val": 5,
    "num_bucket": 2,
}

RECIPES = {
    "whisper": Recipe(
        "docs/librispeech_whisper.diff",
        "LibriSpeech/ASR/transformer",
        "train_with_whisper.py",
        "train_hf_whisper.yaml",
        {
            **LIBRISPEECH,
            "whisper_hub": "{models}/whisper",
            "eval_precision": "fp32",
            "batch_size": 2,
            "freeze_encoder": False,
            "lr_whisper": 0.001,
            "warmup_steps": 3,
            "test_beam_size": 2,
            "max_decode_ratio": 0.02,
        },
    ),
    "ctc_wav2vec2": Recipe(
        "docs/librispeech_ctc_wav2vec2.diff",
        "LibriSpeech/ASR/CTC",
        "train_with_wav2vec.py",
        "train_hf_wav2vec.yaml",
        {
            **LIBRISPEECH,
            "wav2vec2_hub": "{models}/wav2vec2",
            "freeze_wav2vec": False,
            "dnn_neurons": 16,
            "output_neurons": "{labels}",
            "batch_size": 2,
            "test_beam_search": "{beam_size: 4}",
        },
    ),
    "conformer": Recipe(
        "docs/librispeech_conformer.diff",
        "LibriSpeech/ASR/transformer",
        "train.py",
        "conformer_large.yaml",
        {
            **LIBRISPEECH,
            **SMALL,
            **DECODED,
            **DYNAMIC,
            "d_ffn": 32,
            "lm_model": LANGUAGE_MODEL,
            "pretrained_lm_tokenizer_path": "{models}/lm",
        },
    ),
    "transducer": Recipe(
        "docs/librispeech_transducer.diff",
        "LibriSpeech/ASR/transducer",
        "train.py",
        "conformer_transducer.yaml",
        {
            **LIBRISPEECH,
            **SMALL,
            "d_ffn": 32,
            "joint_dim": 16,
            "dec_dim": 16,
            "beam_size": 2,
            "max_batch_len": 5,
            "max_batch_len_val": 5,
            "num_bucket": 2,
            "lm_model": "{embedding_dim: 8, rnn_layers: 1, rnn_neurons: 8, "
            "dnn_neurons: 8}",
            "pretrained_lm_tokenizer_path": "{models}/lm_recurrent",
        },
        # SpeechBrain's loss needs numba and CUDA
        {
            **EDITS,
            "!name:speechbrain.nnet.losses.transducer_loss": ""
            "!name:transducer_loss.transducer_loss",
        },
    ),
    "ctc_conformer": Recipe(
        "tests/upstream/librispeech_ctc_conformer.diff",
        "LibriSpeech/ASR/CTC",
        "train.py",
        "conformer_large.yaml",
        {
            **LIBRISPEECH,
            **SMALL,
            **DYNAMIC,
            "d_ffn": 32,
            "lr_model": 0.01,
            "beam_size": 4,
        },
    ),
    "tedlium2": Recipe(
        "tests/upstream/tedlium2_branchformer.diff",
        "Tedlium2/ASR/transformer",
        "train.py",
        "branchformer_large.yaml",
        {
            **EVERYWHERE,
            **TABLES,
            **SMALL,
            **DECODED,
            **DYNAMIC,
            "csgu_linear_units": 32,
            "csgu_kernel_size": 3,
            "clipped_utt_folder": "{output}/clipped",
            "pretrained_tokenizer_file": "{models}/tokenizer.ckpt",
        },
    ),
    "switchboard": Recipe(
        "tests/upstream/switchboard_transformer.diff",
        "Switchboard/ASR/transformer",
        "train.py",
        "transformer.yaml",
        {
            **EVERYWHERE,
            **TABLES,
            **SMALL,
            **DECODED,
            "d_ffn": 32,
            "normalize_words": False,
            "train_dataloader_opts": "{num_workers: 0}",
            "lm_model": LANGUAGE_MODEL[:-1] + ", d_embedding: 8}",
            "pretrained_lm_tokenizer_path": "{models}/lm_embedding",
        },
    ),
}
COLUMNS = {
    "recipe": "recipe",
    "lines": "lines + / −",
    "override": "overrides on_evaluate_start",
    "merged": "candidates merged",
    "differed": "tensors the hook had replaced",
    "equal": "tensors as merged, each test batch",
    "batches": "test batches",
    "checkpoints": "checkpoints after testing",
    "outcome": "outcome",
}


def arguments(recipe: Recipe, mini: Miniature, known: str, output: Path):
    """Overrides as arguments, of those keys that the recipe's YAML has."""
    places = {
        "output": output,
        "data": mini.data,
        "models": mini.models,
        "pieces": mini.pieces,
        "labels": mini.letters + 1,  # the blank
        "train": mini.tables["train-clean-100"],
        "dev": mini.tables["dev-clean"],
        "test_clean": mini.tables["test-clean"],
        "test_other": mini.tables["test-other"],
    }
    found = []
    for key, value in recipe.overrides.items():
        for name, place in places.items():
            value = str(value).replace(f"{{{name}}}", str(place))
        if re.search(rf"^{key}:", known, re.MULTILINE):
            found += [f"--{key}", value]
    return found


def copied(checkout: Path, recipe: Recipe, work: Path) -> Path:
    """A copy of the recipe with its diff applied."""
    folder = work / "tree" / "recipes" / recipe.folder
    # links of a recipe point to files of its data set's folder
    shutil.copytree(checkout / "recipes" / recipe.folder, folder)
    subprocess.run(
        ["git", "apply", str(ROOT / recipe.diff)],
        cwd=work / "tree",
        env={**os.environ, "GIT_CEILING_DIRECTORIES": str(work)},
        check=True,
    )
    hparams = folder / "hparams" / recipe.hparams
    text = hparams.read_text(encoding="utf-8")
    for old, new in recipe.edits.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    hparams.write_text(text, encoding="utf-8")
    return folder


def changed_lines(diff: str) -> tuple:
    """How many lines a diff adds and removes."""
    text = (ROOT / diff).read_text(encoding="utf-8")
    return tuple(
        len(re.findall(rf"^[{sign}](?![{sign}])", text, re.MULTILINE))
        for sign in "+-"
    )


def run(checkout: Path, name: str, mini: Miniature, work: Path) -> dict:
    """Runs a recipe and compares; a row of the table."""
    recipe, output = RECIPES[name], work / "results"
    work.mkdir()
    folder = copied(checkout, recipe, work)
    added, removed = changed_lines(recipe.diff)
    known = (folder / "hparams" / recipe.hparams).read_text(encoding="utf-8")
    start = time.perf_counter()
    done = subprocess.run(
        [
            *(sys.executable, HERE / "recorder.py", work / "record.pt"),
            *(recipe.script, f"hparams/{recipe.hparams}"),
            *arguments(recipe, mini, known, output),
            *("--device=cpu", "--noprogressbar"),
        ],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE.parent)]),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        },
        capture_output=True,
        text=True,
    )
    log = done.stdout + done.stderr
    (work / "log.txt").write_text(log, encoding="utf-8")
    script = (folder / recipe.script).read_text(encoding="utf-8")
    row = {
        "recipe": f"{recipe.folder}/{recipe.script} {recipe.hparams}",
        "lines": f"{added} / {removed}",
        "override": "yes" if "def on_evaluate_start" in script else "no",
    }
    if done.returncode != 0:
        last = log.strip().splitlines()[-1]
        return {**row, "outcome": f"failed: {last}"}
    row.update(compared(output, work / "record.pt", log))
    print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    if added > 12 or removed > 2:
        row["outcome"] = "failed: too many lines"
    return row


def compared(output: Path, record: Path, log: str) -> dict:
    """What was evaluated beside what was merged."""
    stage = output / "merge" / "average"
    result = json.loads((stage / "result.json").read_text())["result"]
    records = torch.load(record)
    equal, problems, counts = [], [], []
    with open_weights(stage / "merged.safetensors") as merged:
        for each in records:
            same = [
                name
                for name in merged
                if torch.equal(merged[name], each["state"][name])
            ]
            equal.append(f"{len(same)} of {len(merged)}")
            if len(same) != len(merged):
                problems.append("other weights evaluated")
            if not each["steady"] or not each["in_use"]:
                problems.append("weights changed between batches")
    differed = re.findall(r"\((.*) differed\)", log)
    for names in differed:
        more = re.search(r" and (\d+) more$", names)
        counts.append(3 + int(more[1]) if more else len(names.split(", ")))
    checkpoints = sorted((output / "save").glob("CKPT*"))
    made_up = [
        each
        for each in checkpoints
        if re.search(
            r"^(ACC: 1\.1|WER: -0\.1)", (each / "CKPT.yaml").read_text(), re.M
        )
    ]
    if made_up:
        problems.append("a checkpoint of the test stage was saved")
    candidates = read_pool(output / "pool")
    if len(candidates) != EPOCHS:
        problems.append(f"{len(candidates)} candidates in the pool")
    said = (output / "train_log.txt").read_text().count("evaluated: merge")
    if said != len(records):
        problems.append("train_log.txt does not say what was evaluated")
    return {
        "merged": f"{len(result['selected'])} of {len(candidates)}",
        "differed": ", ".join(map(str, counts)) or "none",
        "equal": ", ".join(equal),
        "batches": ", ".join(str(each["batches"]) for each in records),
        "checkpoints": f"{len(checkpoints)}, of training",
        "outcome": f"failed: {'; '.join(problems)}" if problems else "passed",
    }


def table(rows: list) -> str:
    """The rows as Markdown."""
    lines = [list(COLUMNS.values()), ["---"] * len(COLUMNS)]
    lines += [[row.get(key, "") for key in COLUMNS] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main():
    """Checks the recipes that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path, help="of SpeechBrain")
    parser.add_argument("names", nargs="*", choices=[[], *RECIPES])
    parser.add_argument(
        "--speech", type=Path, default=ROOT.parent / "shared" / "speech"
    )
    parser.add_argument("--keep", type=Path, help="folder to leave it all in")
    options = parser.parse_args()
    work = options.keep or Path(tempfile.mkdtemp())
    work.mkdir(parents=True, exist_ok=True)
    work = work.resolve()
    try:
        mini = build(work, options.speech)
        rows = [
            run(options.checkout.resolve(), name, mini, work / name)
            for name in options.names or RECIPES
        ]
    finally:
        if options.keep is None:
            shutil.rmtree(work)
    print(table(rows))
    sys.exit(any(row["outcome"] != "passed" for row in rows))


if __name__ == "__main__":
    main()
