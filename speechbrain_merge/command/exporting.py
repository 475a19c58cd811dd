"""``speechbrain-merge export``: a folder that loads like any other model.

Authors
 * The speechbrain_merge authors 2026
"""

from collections.abc import Callable

from speechbrain_merge.command.verification import given_signer
from speechbrain_merge.export import (
    export_ctranslate2,
    export_ggml,
    export_pretrained,
    export_whisper,
)

CONVERSIONS: dict[str, Callable] = {
    "ctranslate2": export_ctranslate2,
    "ggml": export_ggml,
}


def run(options) -> dict:
    """Writes a folder that loads like any other model."""
    signer = given_signer(options)
    if signer is not None:
        signer.check()
    if options.kind in CONVERSIONS:
        convert = CONVERSIONS[options.kind]
        folder = convert(options.source, options.output, sign=signer)
    elif options.kind == "pretrained":
        if options.hparams is None:
            raise ValueError("give --hparams, the YAML for inference.")
        folder = export_pretrained(
            options.source,
            options.hparams,
            options.output,
            options.file,
            sign=signer,
        )
    else:
        if options.whisper is None:
            raise ValueError(
                "give --whisper, a folder or hub name of a Whisper of the same "
                "architecture, for its configuration and tokenizer."
            )
        from huggingface_hub.constants import HF_HUB_CACHE

        from speechbrain.integrations.huggingface.whisper import Whisper

        try:
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
        folder = export_whisper(
            options.source,
            whisper,
            options.output,
            options.module,
            sign=signer,
        )
    return {"folder": str(folder)}


def show(found):
    """Prints where the folder is."""
    print(found["folder"])
