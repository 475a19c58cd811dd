"""The options of ``speechbrain-merge export``, and those of signing.

Authors
 * The speechbrain_merge authors 2026
"""

import argparse

_ABOUT_EXPORTS = """\
what each kind needs, and what else it takes:
  whisper      --whisper; --module --language --dtype --max-shard-size
  ctc          --ssl --labels; --module --head --blank-index --dtype
               --max-shard-size
  recipe       --hparams --interface --encoder --tokenizer; --decoder --file
               --blank-index --overrides --dtype
  pretrained   --hparams; --file
  ctranslate2  --dtype
  ggml         none
All write the card of the merge, README.md.

A Conformer with CTC, and a transducer:
  speechbrain-merge export recipe m.safetensors --hparams hyperparams.yaml \\
      --interface EncoderASR --tokenizer label_encoder.txt -o folder \\
      --encoder compute_features,normalize,CNN,Transformer,ctc_lin \\
      --file normalize=normalizer.ckpt
  speechbrain-merge export recipe m.safetensors --hparams hyperparams.yaml \\
      --interface StreamingASR --tokenizer tokenizer.model -o folder \\
      --encoder compute_features,normalize,CNN,enc,proj_enc \\
      --decoder Greedysearcher --file normalize=normalizer.ckpt
"""


def add_export(commands):
    """The command that makes folders that load.

    Arguments
    ---------
    commands : argparse's subparsers
        Where it is added.
    """
    command = commands.add_parser(
        "export",
        help="make a folder that loads",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_ABOUT_EXPORTS,
    )
    command.set_defaults(runs="exporting")
    command.add_argument(
        "kind",
        choices=(
            "whisper",
            "ctc",
            "recipe",
            "pretrained",
            "ctranslate2",
            "ggml",
        ),
    )
    command.add_argument(
        "source",
        help="merged weights; for ctranslate2 (faster-whisper) and ggml "
        "(whisper.cpp) a folder that `export whisper` wrote",
    )
    command.add_argument("-o", "--output", required=True, help="the folder")
    command.add_argument(
        "--whisper", help="folder or hub name of a Whisper of the same size"
    )
    command.add_argument("--language", help="of a multilingual Whisper")
    command.add_argument(
        "--ssl",
        help="folder or hub name of a wav2vec 2.0, HuBERT or WavLM of the same "
        "size",
    )
    command.add_argument(
        "--labels", help="label_encoder.txt of the training, or a vocab.json"
    )
    command.add_argument(
        "--module", help="name of the Whisper, or wav2vec 2.0, in the weights"
    )
    command.add_argument("--head", help="name of CTC's layer in the weights")
    command.add_argument("--blank-index", type=int, help="CTC's blank")
    command.add_argument(
        "--hparams",
        help="of `recipe` the YAML of the training, of `pretrained` that for "
        "inference",
    )
    command.add_argument(
        "--overrides", help="of that YAML: '{data_folder: null}'"
    )
    command.add_argument(
        "--interface", help="EncoderASR, EncoderDecoderASR or StreamingASR"
    )
    command.add_argument(
        "--encoder",
        metavar="KEYS",
        help="what audio passes through, in order: "
        "compute_features,normalize,CNN,Transformer,ctc_lin",
    )
    command.add_argument("--decoder", metavar="KEY", help="the search")
    command.add_argument(
        "--tokenizer", help="a SentencePiece model, or label_encoder.txt"
    )
    command.add_argument(
        "--file",
        action="append",
        default=[],
        help="another loadable's file; of `recipe` as KEY=PATH, such as "
        "normalize=CKPT+latest/normalizer.ckpt",
    )
    command.add_argument(
        "--dtype",
        help="of the stored weights: float32, float16, bfloat16; for "
        "ctranslate2 also int8, int8_float16, …",
    )
    command.add_argument(
        "--max-shard-size",
        "--max_shard_size",
        metavar="SIZE",
        help="the largest file of weights, as 2GB",
    )
    command.add_argument(
        "--card",
        metavar="YAML",
        help="what the card says besides: license, language, tags, …",
    )
    add_signing(command)


def add_signing(command: argparse.ArgumentParser):
    """The options by which an output is signed.

    Arguments
    ---------
    command : argparse.ArgumentParser
        Of a command that writes one.
    """
    command.add_argument(
        "--sign",
        metavar="KEY",
        help="sign with this private key (needs speechbrain_merge[sign])",
    )
    command.add_argument("--certificate", help="of the key")
    command.add_argument(
        "--certificate-chain",
        action="append",
        default=[],
        metavar="FILE",
        help="certificates between that and the root's",
    )
