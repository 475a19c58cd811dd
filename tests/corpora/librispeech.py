"""LibriSpeech in miniature, in exactly its layout, and tiny models for it.

The audio is made: a word is a tone of its own pitch under light noise.

    python tests/corpora/librispeech.py tests/tmp

writes what the rows of tests/recipes/LibriSpeech.csv look for in tests/tmp.

Example
-------
>>> folder = getfixture("tmp_path")
>>> write_corpus(folder / "LibriSpeech", {"dev-clean": 2})
>>> for path in sorted((folder / "LibriSpeech/dev-clean").rglob("*.*")):
...     print(path.relative_to(folder).as_posix())
LibriSpeech/dev-clean/1000/10000/1000-10000-0000.flac
LibriSpeech/dev-clean/1000/10000/1000-10000.trans.txt
LibriSpeech/dev-clean/1001/10001/1001-10001-0000.flac
LibriSpeech/dev-clean/1001/10001/1001-10001.trans.txt

Authors
 * The speechbrain_merge authors 2026
"""

import json
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy
import sentencepiece
import soundfile
import torch
from listed_recipes import flags_of
from tiny_models import (
    make_speech,
    tiny_bert,
    tiny_hubert,
    tiny_wav2vec2,
    tiny_wavlm,
    tiny_whisper,
)

from speechbrain.lobes.models.transformer.TransformerLM import TransformerLM
from speechbrain_merge.methods import trajectory_weights
from speechbrain_merge.pool import read_pool, select
from speechbrain_merge.weights import fold, open_weights

RATE = 16000
WORDS = ("GO", "DO", "YOU", "HEAR", "NOT", "AT")
SPLITS = {
    "train-clean-100": 8,
    "train-other-500": 8,
    "dev-clean": 4,
    "dev-other": 4,
    "test-clean": 4,
    "test-other": 4,
}
"""Splits, and how many utterances each has."""


def make(folder) -> None:
    """Writes the corpus, a set of other speech, and the models.

    Arguments
    ---------
    folder : str or Path
        Gets ``LibriSpeech``, ``speech`` with its ``speech.csv``, ``tokenizer``
        with a language model, and ``whisper``, ``wav2vec2``, ``hubert``,
        ``wavlm`` and ``bert`` as Hugging Face folders.
    """
    folder = Path(folder)
    write_corpus(folder / "LibriSpeech", SPLITS)
    make_speech(folder / "speech", 3)
    tiny_whisper(folder / "whisper", layers=1)
    tiny_wav2vec2(folder / "wav2vec2")
    tiny_hubert(folder / "hubert")
    tiny_wavlm(folder / "wavlm")
    tiny_bert(folder / "bert")
    write_tokenizer(folder / "tokenizer")


def write_corpus(folder, splits) -> None:
    """Writes splits: two speakers with a chapter each, FLAC and transcripts.

    Arguments
    ---------
    folder : str or Path
        The folder ``LibriSpeech``.
    splits : dict
        Name of a split to its number of utterances.
    """
    generator = numpy.random.default_rng(0)
    for place, (split, number) in enumerate(splits.items()):
        for part in range(2):
            speaker, chapter = 1000 + 2 * place + part, 10000 + 2 * place + part
            home = Path(folder, split, str(speaker), str(chapter))
            home.mkdir(parents=True)
            lines = []
            for index in range(number // 2):
                name = f"{speaker}-{chapter}-{index:04d}"
                words = generator.integers(0, len(WORDS), size=2 + index % 2)
                audio = spoken(words, 1.0 + 0.1 * part, generator)
                soundfile.write(home / f"{name}.flac", audio, RATE)
                text = " ".join(WORDS[word] for word in words)
                lines.append(f"{name} {text}\n")
            path = home / f"{speaker}-{chapter}.trans.txt"
            path.write_text("".join(lines), encoding="utf-8")


def spoken(words, pitch, generator):
    """Half a second of a tone for each word."""
    time = numpy.arange(RATE // 2) / RATE
    tones = [numpy.sin(440 * pitch * (1 + word) * time) for word in words]
    audio = 0.3 * numpy.concatenate(tones)
    return audio + 0.01 * generator.standard_normal(len(audio))


def write_tokenizer(folder) -> None:
    """Writes ``tokenizer.ckpt`` (SentencePiece, characters) and ``lm.ckpt``."""
    folder.mkdir()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(WORDS)]),
        model_prefix=str(folder / "tokenizer"),
        model_type="char",
        vocab_size=64,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "tokenizer.model").rename(folder / "tokenizer.ckpt")
    pieces = sentencepiece.SentencePieceProcessor()
    pieces.load(str(folder / "tokenizer.ckpt"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = TransformerLM(
            len(pieces),
            d_model=16,
            nhead=2,
            num_encoder_layers=1,
            num_decoder_layers=0,
            d_ffn=32,
            dropout=0.0,
            normalize_before=False,
        )
    torch.save(model.state_dict(), folder / "lm.ckpt")


def check(row, output) -> None:
    """Compares the merges of a finished run with sums worked out by hand.

    Arguments
    ---------
    row : dict
        Of the table.
    output : Path
        The run's folder of results.
    """
    flags = dict(flag[2:].split("=", 1) for flag in flags_of(row, output)[0])
    name = Path(row["Hparam_file"]).stem
    if name in ("train", "train_ssl", "conformer_small"):
        path = read_pool(output / "pool")
        assert len(path) == int(flags["number_of_epochs"])
        last = flags.get("merged_checkpoints", "5")
        [merge] = output.glob("merge/*/merged.safetensors")
        assert_decayed(merge, path[-int(last) :], flags.get("decay", "linear"))
    models, merges = output / "seed-1986/models", output / "seed-1986/merge"
    if name == "trajectories":
        best = []
        for run in ("run-01", "run-02"):
            path = read_pool(models / run / "pool")
            merge = merges / f"mast-{run}/merged.safetensors"
            assert_decayed(merge, path[-2:], flags["decay"])
            best += select(path, per_run="best")
        assert_sum(merges / "mact/merged.safetensors", best, [1 / 2, 1 / 2])
    if name == "aode":
        members = [
            select(read_pool(models / split / "pool"), per_run="best")[0]
            for split in ("train-clean-100", "train-other-500")
        ]
        assert_sum(merges / "aode/merged.safetensors", members, [1 / 2, 1 / 2])
        members.append(output / "seed-1986/original.safetensors")
        merge = merges / "aode-original/merged.safetensors"
        assert_sum(merge, members, [1 / 3, 1 / 3, 1 / 3])
        counts = json.loads((output / "results.json").read_text())
        assert counts["retention"] == ["retention"]
    if name == "mam":
        [target] = select(read_pool(models / "target/pool"), per_run="best")
        with (
            open_weights(target) as before,
            open_weights(merges / "mam/merged.safetensors") as after,
        ):
            changed = {x for x in after if not after[x].equal(before[x])}
        # with a ratio of 0 nothing changes
        assert all("attention" in name for name in changed)


def assert_decayed(merge, path, decay) -> None:
    """Raises where a merge is not the checkpoints weighed by a decay."""
    assert_sum(merge, path, trajectory_weights(decay, len(path)))


def assert_sum(merge, members, weights) -> None:
    """Raises where a merge is not the weighted sum of its members."""
    # weight norm is no sum: it is taken out on both sides
    with fold(merge) as merged:
        opened = [fold(member) for member in members]
        for name in merged:
            if merged.dtype(name).is_floating_point:
                total = sum(
                    weight * of_one[name].double()
                    for weight, of_one in zip(weights, opened)
                )
                torch.testing.assert_close(
                    merged[name], total.float(), rtol=1e-5, atol=1e-6
                )


if __name__ == "__main__":
    make(sys.argv[1])
