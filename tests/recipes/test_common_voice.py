"""The Common Voice recipe decodes every utterance in its own language."""

import importlib

import pytest
from listed_recipes import ROOT
from tiny_domains import recipe_module
from tiny_models import tiny_whisper

import speechbrain as sb

RECIPE = ROOT / "recipes/CommonVoice/ASR/whisper"


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """Two languages and a Whisper of many."""
    corpus = importlib.import_module("corpora.commonvoice")
    folder = tmp_path_factory.mktemp("common_voice")
    corpus.write_language(folder / "cv", "es", ["México"], 2)
    corpus.write_language(folder / "cv", "zh-CN", [""], 2, old=True)
    tiny_whisper(folder / "whisper", layers=1, multilingual=True)
    return folder


def built(module, material, output, **overrides):
    """A run of the recipe's own YAML."""
    overrides = {
        "data_folder": str(material / "cv"),
        "whisper_hub": str(material / "whisper"),
        "output_folder": str(output),
        "definitions": {
            "mexico": {"language": "es", "accents": ["México"]},
            "zh": {"language": "zh-CN"},
        },
        "domains": ["mexico", "zh"],
        "test_domains": ["zh"],
        "window": 2,
        "precision": "fp32",
        "eval_precision": "fp32",
        "max_decode_ratio": 0.02,
        "test_beam_size": 3,
        **overrides,
    }
    return module.build(
        str(RECIPE / "hparams/train.yaml"),
        overrides,
        {"device": "cpu", "noprogressbar": True},
    )


@pytest.mark.parametrize("stage", [sb.Stage.VALID, sb.Stage.TEST])
def test_a_batch_of_two_languages(material, tmp_path, monkeypatch, stage):
    with recipe_module(RECIPE) as module:
        run = built(module, material, tmp_path)
    brain, whisper = run.brain, run.brain.hparams.whisper
    code = whisper.tokenizer.convert_tokens_to_ids
    rows = list(run.valid_sets["mexico"]) + list(run.valid_sets["zh"])
    batch = sb.dataio.batch.PaddedBatch(rows[::2] + rows[1::2])
    languages = [code(f"<|{language}|>") for language in batch.language]
    assert len(set(languages)) == 2
    assert batch.tokens_bos.data[:, 1].tolist() == languages
    assert batch.tokens_eos.data[:, 0].tolist() == languages
    decoded = []
    own = whisper.forward_decoder

    def recorded(states, tokens, **options):
        decoded.append(tokens)
        return own(states, tokens, **options)

    monkeypatch.setattr(whisper, "forward_decoder", recorded)
    brain.on_stage_start(stage)
    brain.modules.eval()
    brain.evaluate_batch(batch, stage)
    beams = 3 if stage == sb.Stage.TEST else 1
    # the first of the calls is that of the loss, the second the search's
    prompts = decoded[1][:, 1].tolist()
    assert prompts == [one for one in languages for _ in range(beams)]
    # Chinese is counted in characters, Spanish in words
    counts = {score["key"]: score for score in brain.wer_metric.scores}
    for key, text in zip(batch.id, batch.wrd):
        unit = list if key.startswith("zh") else str.split
        letters = "".join(c for c in text if c.isalpha() or c == " ")
        if unit is list:
            letters = letters.replace(" ", "")
        assert counts[key]["ref_tokens"] == unit(letters.upper())


def test_a_language_that_whisper_lacks_is_told(material, tmp_path):
    with recipe_module(RECIPE) as module:
        run = built(
            module,
            material,
            tmp_path,
            definitions={
                "mexico": {"language": "es", "code": "xx"},
                "zh": {"language": "zh-CN"},
            },
        )
        with pytest.raises(ValueError, match="no language 'xx': name another"):
            run.train_set[0]["tokens_bos"]
