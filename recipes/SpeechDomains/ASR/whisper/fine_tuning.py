"""What a training starts from, what of it is trained, and what holds it back.

Authors
 * The speechbrain_merge authors 2026
"""

from speechbrain.nnet.adapters import AdaptedModel, LoRA

from speechbrain_merge.training import LearningWithoutForgetting, freeze


def prepare_fine_tuning(asr_brain, hparams):
    """Does what the YAML says of a training, before its optimizer is made.

    Arguments
    ---------
    asr_brain : ASR
        Just built.
    hparams : dict
        With ``start_from`` (weights to start from, others than the hub's),
        ``lwf_weight`` and ``lwf_temperature`` (Learning without Forgetting),
        ``lora_rank`` (trains adapters alone) and ``frozen`` (parts that are
        not trained).
    """
    if hparams["start_from"] is not None:
        asr_brain.load_weights(hparams["start_from"])
    if hparams["lwf_weight"]:
        # Of the model as it is now, before anything is trained
        asr_brain.distillation = LearningWithoutForgetting(
            hparams["whisper"],
            weight=hparams["lwf_weight"],
            temperature=hparams["lwf_temperature"],
        )
    if hparams["lora_rank"] is not None:
        # In place; scaled by 2 whatever the rank. The pool folds it.
        AdaptedModel(
            hparams["whisper"],
            LoRA,
            all_linear=True,
            adapter_kwargs={
                "rank": hparams["lora_rank"],
                "alpha": 2 * hparams["lora_rank"],
            },
        )
    if hparams["frozen"]:
        freeze(hparams["modules"], hparams["frozen"])
