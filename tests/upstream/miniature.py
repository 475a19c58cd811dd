"""Miniature data in LibriSpeech's layout, and tiny models, for real recipes.

Authors
 * The speechbrain_merge authors 2026
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import sentencepiece
import soundfile
import torch
from tiny_models import make_speech, tiny_wav2vec2, tiny_whisper

from speechbrain.lobes.models.RNNLM import RNNLM
from speechbrain.lobes.models.transformer.TransformerLM import TransformerLM

SPLITS = {"train-clean-100": 10, "dev-clean": 4, "test-clean": 3}
SPLITS["test-other"] = 3
SPLITS["train-other-500"] = 10  # last: the others keep their utterances
CHARACTERS = 20  # a tiny Whisper takes 64 tokens
SECONDS = (1.2, 3.0)


@dataclass
class Utterance:
    """One utterance: its audio file, duration in seconds, and transcript."""

    name: str
    path: Path
    seconds: float
    text: str


@dataclass
class Miniature:
    """What a recipe is run on.

    Arguments
    ---------
    data : Path
        In LibriSpeech's layout.
    tables : dict
        Split to the path of its CSV, with the columns that recipes read.
    models : Path
        Holds `tokenizer.ckpt` (characters, SentencePiece), language models,
        and the folders `whisper` and `wav2vec2`.
    pieces : int
        Size of the tokenizer.
    letters : int
        Different characters in the transcripts, the space among them.
    """

    data: Path
    tables: dict
    models: Path
    pieces: int
    letters: int


def build(folder: Path, speech: Path) -> Miniature:
    """Makes the data and the models.

    Arguments
    ---------
    folder : Path
        Where to.
    speech : Path
        A folder of real speech with `manifest.csv`; where it is missing,
        tones are generated.

    Returns
    -------
    Miniature
    """
    found = recorded(speech) if speech.is_dir() else generated(folder)
    data, tables, start = folder / "LibriSpeech", {}, 0
    for split, count in SPLITS.items():
        rows = found[start : start + count]
        start += count
        tables[split] = write_split(data, split, rows)
    texts = [each.text for each in found[:start]]
    models = folder / "models"
    models.mkdir()
    pieces = write_tokenizer(models / "tokenizer.ckpt", texts)
    tiny_whisper(models / "whisper", layers=1)
    # the head of the recipe is made for 1024 features
    tiny_wav2vec2(
        models / "wav2vec2",
        hidden_size=1024,
        num_hidden_layers=1,
        num_conv_pos_embedding_groups=16,
    )
    for name, extra in (("lm", {}), ("lm_embedding", {"d_embedding": 8})):
        write_language_model(models / name, pieces, extra)
    write_recurrent_model(models / "lm_recurrent", pieces)
    letters = len(set("".join(texts)))
    return Miniature(data, tables, models, pieces, letters)


def recorded(speech: Path) -> list:
    """Short utterances of real speech; the first ones use every letter."""
    with open(speech / "manifest.csv", encoding="utf-8", newline="") as file:
        rows = [
            row
            for row in csv.DictReader(file)
            if SECONDS[0] <= float(row["duration"]) <= SECONDS[1]
            and len(row["wrd"]) <= CHARACTERS
            and row["wrd"].replace(" ", "").isalpha()
        ]
    rows = rows[:: max(1, len(rows) // 60)]
    train = rows[: SPLITS["train-clean-100"]]
    letters = set("".join(row["wrd"] for row in train))
    others = [row for row in rows[len(train) :] if set(row["wrd"]) <= letters]
    return [
        Utterance(
            row["ID"],
            Path(row["wav"].replace("$data_root", str(speech))),
            float(row["duration"]),
            row["wrd"],
        )
        for row in train + others
    ]


def generated(folder: Path) -> list:
    """Tones that stand for words."""
    path = make_speech(folder / "tones", sum(SPLITS.values()), seconds=1.2)
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [
        Utterance(row["ID"], Path(row["wav"]), float(row["duration"]), text)
        for row, text in zip(rows, ["ONE SIX", "TWO FIVE", "ONE TWO"] * 99)
    ]


def write_split(data: Path, split: str, rows: list) -> Path:
    """FLAC files and a transcript, as LibriSpeech has them, and a CSV."""
    chapter = data / split / "1" / "2"
    chapter.mkdir(parents=True)
    table = data / f"{split}.csv"
    with (
        open(chapter / "1-2.trans.txt", "w", encoding="utf-8") as text,
        open(table, "w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.writer(file)
        # the columns of LibriSpeech, Tedlium2 and Switchboard together
        columns = "ID duration start stop channel wav spk_id wrd words"
        writer.writerow(columns.split())
        for index, each in enumerate(rows):
            name = f"1-2-{split}-{index:04d}"
            samples, rate = soundfile.read(each.path)
            path = chapter / f"{name}.flac"
            soundfile.write(path, samples, rate)
            text.write(f"{name} {each.text}\n")
            place = [0, len(samples), "A", path, "1"]
            seconds = len(samples) / rate
            writer.writerow([name, seconds, *place, each.text, each.text])
    return table


def write_tokenizer(path: Path, texts: list) -> int:
    """A SentencePiece model of characters; its size."""
    prefix = path.with_suffix("")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_prefix=str(prefix),
        model_type="char",
        vocab_size=64,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    Path(f"{prefix}.model").rename(path)
    pieces = sentencepiece.SentencePieceProcessor()
    pieces.load(str(path))
    return len(pieces)


def write_language_model(folder: Path, pieces: int, extra: dict):
    """`lm.ckpt` of a Transformer, and the tokenizer beside it."""
    folder.mkdir()
    torch.manual_seed(0)
    model = TransformerLM(
        pieces,
        d_model=16,
        nhead=2,
        num_encoder_layers=1,
        num_decoder_layers=0,
        d_ffn=32,
        dropout=0.0,
        normalize_before=False,
        **extra,
    )
    torch.save(model.state_dict(), folder / "lm.ckpt")
    (folder / "tokenizer.ckpt").symlink_to(folder.parent / "tokenizer.ckpt")


def write_recurrent_model(folder: Path, pieces: int):
    """`lm.ckpt` of an LSTM, and the tokenizer beside it."""
    folder.mkdir()
    torch.manual_seed(0)
    model = RNNLM(
        pieces,
        embedding_dim=8,
        rnn_layers=1,
        rnn_neurons=8,
        dnn_blocks=1,
        dnn_neurons=8,
        return_hidden=True,
    )
    torch.save(model.state_dict(), folder / "lm.ckpt")
    (folder / "tokenizer.ckpt").symlink_to(folder.parent / "tokenizer.ckpt")
