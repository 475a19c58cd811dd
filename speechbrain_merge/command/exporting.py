"""``speechbrain-merge export``: a folder that loads like any other model.

Authors
 * The speechbrain_merge authors 2026
"""

import re
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from speechbrain.dataio.encoder import CTCTextEncoder
from speechbrain_merge.command.verification import given_signer
from speechbrain_merge.export import (
    export_ctc,
    export_ctranslate2,
    export_ggml,
    export_pretrained,
    export_recipe,
    export_whisper,
)
from speechbrain_merge.export.consistency import check_size
from speechbrain_merge.export.ctc import SPACE, WORD_DELIMITER
from speechbrain_merge.export.folder import CARD, card_texts
from speechbrain_merge.records.ownership import check_unchanged
from speechbrain_merge.records.reading import read_json, read_yaml
from speechbrain_merge.weights import float_dtype

COMMON = ("card", "sign", "certificate", "certificate_chain")

KINDS: dict[str, tuple] = {
    "whisper": (
        ("whisper",),
        ("module", "language", "dtype", "max_shard_size"),
    ),
    "ctc": (
        ("ssl", "labels"),
        ("module", "head", "blank_index", "dtype", "max_shard_size"),
    ),
    "recipe": (
        ("hparams", "interface", "encoder", "tokenizer"),
        ("decoder", "file", "blank_index", "overrides", "dtype"),
    ),
    "pretrained": (("hparams",), ("file",)),
    "ctranslate2": ((), ("dtype",)),
    "ggml": ((), ()),
}
"""Of each kind of export the options that it needs, and others that it takes."""

SSL = {"wav2vec2": "Wav2Vec2", "hubert": "HuBERT", "wavlm": "WavLM"}
"""Model type of transformers to SpeechBrain's class."""

_GIVEN = ("whisper", "ssl", "labels", "hparams", "tokenizer")
"""Options that name files which go into the export."""

_SIZE = re.compile(r"[1-9][0-9]*(?:\.[0-9]+)? ?[KMG]?i?B", re.IGNORECASE)


def run(options) -> dict:
    """Writes a folder that loads like any other model."""
    _check_options(options)
    signer = given_signer(options)
    if signer is not None:
        signer.check()
    about = {} if options.card is None else read_yaml(options.card)
    common: dict[str, Any] = {"sign": signer}
    if options.kind != "ctranslate2" and options.dtype is not None:
        common["dtype"] = float_dtype(options.dtype, "--dtype")
    if options.max_shard_size is not None:
        if not _SIZE.fullmatch(options.max_shard_size):
            raise ValueError(
                f"--max-shard-size {options.max_shard_size}: expected a size "
                "such as 2GB or 500MB."
            )
        common["max_shard_size"] = options.max_shard_size
    source, folder = options.source, Path(options.output)
    if not Path(source).exists():
        raise ValueError(f"{source} does not exist: give the merged weights.")
    _check_given(options)
    common["texts"] = card_texts(source, folder, about)
    if about and CARD not in common["texts"]:
        raise ValueError(
            f"{source} has no record of a merge to make a card of: leave out "
            "--card."
        )
    folder = {
        "whisper": _whisper,
        "ctc": _ctc,
        "recipe": _recipe,
        "pretrained": _pretrained,
        "ctranslate2": _ctranslate2,
        "ggml": _ggml,
    }[options.kind](source, folder, options, common)
    card = folder / CARD
    return {
        "folder": str(folder),
        "card": str(card) if card.is_file() else None,
        "files": {
            str(path.relative_to(folder)): path.stat().st_size
            for path in sorted(folder.rglob("*"))
            if path.is_file() and not path.name.startswith(".")
        },
    }


def read_labels(path) -> tuple[list[str], int]:
    """The labels of CTC in a file, and the number of the blank.

    Arguments
    ---------
    path : str or Path
        What ``CTCTextEncoder`` saved (label_encoder.txt), or a vocab.json of
        transformers.

    Returns
    -------
    labels : list of str
        By index.
    blank_index : int
        0 where the file does not say it.

    Raises
    ------
    ValueError
        Where it is neither.

    Example
    -------
    >>> encoder = CTCTextEncoder()
    >>> encoder.insert_blank(index=0)
    >>> encoder.update_from_iterable(["ba", " "])
    >>> path = getfixture("tmp_path") / "label_encoder.txt"
    >>> encoder.save(path)
    >>> read_labels(path)
    (['<blank>', 'b', 'a', ' '], 0)
    """
    path = Path(path)
    if path.suffix == ".json":
        known = read_json(path)
        blank = "[PAD]" if "[PAD]" in known else "<pad>"
        if isinstance(known, Mapping) and SPACE not in known:
            # which transformers hears as a space
            known = {
                SPACE if label == WORD_DELIMITER else label: index
                for label, index in known.items()
            }
    else:
        encoder = CTCTextEncoder()
        if not path.is_file() or path.read_bytes()[:1] not in (b"'", b'"'):
            raise ValueError(
                f"{path} holds no labels: expected the file that a "
                "CTCTextEncoder saved (label_encoder.txt), or a vocab.json."
            )
        try:
            encoder.load(path)
        except (KeyError, ValueError, SyntaxError, IndexError) as error:
            raise ValueError(
                f"{path} cannot be read as the labels that a CTCTextEncoder "
                f"saved ({type(error).__name__}: {error}). Was it written to "
                "its end?"
            ) from None
        known = encoder.lab2ind
        blank = getattr(encoder, "blank_label", "")
    if not isinstance(known, Mapping) or sorted(known.values(), key=str) != (
        sorted(range(len(known)), key=str)
    ):
        raise ValueError(
            f"{path}: expected each label with a number of its own, from 0 on."
        )
    return sorted(known, key=known.__getitem__), known.get(blank, 0)


def show(found):
    """Prints where the folder is."""
    print(found["folder"])


def _check_options(options):
    """Refuses options that a kind of export does not take, or lacks."""
    needed, taken = KINDS[options.kind]
    every = {
        name for sets in KINDS.values() for names in sets for name in names
    }
    given = {name for name in every if getattr(options, name) not in (None, [])}
    title = f"export {options.kind}"
    faults = [
        f"{title} needs {_flag(name)}." for name in needed if name not in given
    ]
    faults += [
        f"{title} takes no {_flag(name)}."
        for name in sorted(given.difference(needed, taken))
    ]
    if faults:
        raise ValueError("\n".join(faults))


def _check_given(options):
    """Refuses files of an earlier export that were changed since.

    Names on the hub, and folders of other programs, have no mark.
    """
    given = [getattr(options, name) for name in _GIVEN]
    given += [each.partition("=")[2] or each for each in options.file or []]
    for path in map(Path, filter(None, given)):
        if path.exists():
            folder = path if path.is_dir() else path.parent
            check_unchanged(folder, but=[CARD])


def _flag(name):
    return "--" + name.replace("_", "-")


def _whisper(source, folder, options, common):
    from huggingface_hub.constants import HF_HUB_CACHE

    from speechbrain.integrations.huggingface.whisper import Whisper

    try:
        check_size(source, options.whisper)
        whisper = Whisper(
            options.whisper, str(HF_HUB_CACHE), language=options.language
        )
    except Exception as error:
        # transformers raises whatever comes of a missing file
        raise ValueError(
            f"--whisper {options.whisper}: cannot be opened as a Whisper "
            "with its configuration, tokenizer and feature extractor "
            f"({type(error).__name__}: {error})."
        ) from error
    module = options.module or "whisper"
    return export_whisper(source, whisper, folder, module, **common)


def _ctc(source, folder, options, common):
    from huggingface_hub.constants import HF_HUB_CACHE

    labels, blank_index = read_labels(options.labels)
    if options.blank_index is not None:
        blank_index = options.blank_index
    try:
        kind = check_size(source, options.ssl).model_type
        if kind not in SSL:
            raise ValueError(f"it is a model of type {kind}")
        wrapper = import_module(f"speechbrain.integrations.huggingface.{kind}")
        encoder = getattr(wrapper, SSL[kind])(options.ssl, str(HF_HUB_CACHE))
    except Exception as error:
        raise ValueError(
            f"--ssl {options.ssl}: cannot be opened as a wav2vec 2.0, HuBERT "
            "or WavLM with its configuration and feature extractor "
            f"({type(error).__name__}: {error})."
        ) from error
    return export_ctc(
        source,
        encoder,
        labels,
        folder,
        options.module or "wav2vec2",
        options.head or "ctc_lin",
        blank_index,
        **common,
    )


def _recipe(source, folder, options, common):
    files = {}
    for given in options.file:
        key, sign, path = given.partition("=")
        if not sign or not key or not Path(path).is_file():
            raise ValueError(
                f"--file {given}: expected KEY=PATH, with a key of the YAML "
                "and the file that its object loads."
            )
        files[key] = path
    for name in ("hparams", "tokenizer"):
        path = getattr(options, name)
        if not Path(path).is_file():
            raise ValueError(f"{_flag(name)} {path}: is no file.")
    return export_recipe(
        source,
        options.hparams,
        folder,
        options.interface,
        [key.strip() for key in options.encoder.split(",")],
        Path(options.tokenizer),
        options.decoder,
        files,
        options.blank_index or 0,
        options.overrides,
        **common,
    )


def _pretrained(source, folder, options, common):
    return export_pretrained(
        source, options.hparams, folder, options.file, **common
    )


def _ctranslate2(source, folder, options, common):
    if options.dtype is not None:
        common["quantization"] = options.dtype
    return export_ctranslate2(source, folder, **common)


def _ggml(source, folder, options, common):
    return export_ggml(source, folder, **common)
