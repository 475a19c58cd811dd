"""The windowed Whisper, on a tiny real one."""

import pytest
import torch
from tiny_models import tiny_whisper

from speechbrain.decoders.seq2seq import S2SWhisperGreedySearcher
from speechbrain.integrations.huggingface.whisper import Whisper
from speechbrain_merge.training import windowed_whisper


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_whisper(tmp_path_factory.mktemp("whisper"))


@pytest.fixture
def module():
    return windowed_whisper


@pytest.fixture
def build(module, folder):
    def build(**options):
        return module.WindowedWhisper(folder, folder + "/hub", **options).eval()

    return build


@pytest.fixture
def plain(folder):
    return Whisper(folder, folder + "/hub").eval()


def speech(seconds, batch=2):
    """Noise that fades in and out, up to the very last sample."""
    return torch.randn(batch, int(seconds * 16000)) * 0.1


@torch.no_grad()
def outputs(model, wavs):
    tokens = torch.tensor([[model.bos, 5, 6]] * len(wavs))
    return model(wavs, tokens)[:2]


@pytest.mark.parametrize("seconds", [1.5, 6.0, 9.0, 31.0])
def test_a_window_of_30_s_is_speechbrains_whisper(build, plain, seconds):
    wavs = speech(seconds)
    for ours, theirs in zip(
        outputs(build(window=30), wavs), outputs(plain, wavs)
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("seconds", [1.5, 6.0])
def test_computing_all_the_silence_is_exact(build, plain, seconds):
    wavs = speech(seconds)
    model = build(window=6, silence_step=1)
    # not through the road that computes 30 s in full
    assert model._get_mel(wavs).shape[-1] == 610
    for ours, theirs in zip(outputs(model, wavs), outputs(plain, wavs)):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_thin_silence_keeps_speech_and_both_ends(build):
    model = build(window=6, silence_step=20)
    positions = model.positions(302).tolist()
    assert positions[:302] == list(range(302))
    assert positions[-1] == 1499 and positions[-2] == 1479
    assert min(positions[302:]) >= 302 and len(positions) == 362
    encoded, _ = outputs(model, speech(2))
    assert encoded.shape == (2, 362, 16)


def test_what_does_not_fit_the_window_is_computed_in_full(build, plain):
    wavs = speech(6.5)
    for ours, theirs in zip(
        outputs(build(window=6), wavs), outputs(plain, wavs)
    ):
        assert torch.equal(ours, theirs)


def test_a_batch_takes_the_smallest_window_that_it_fits_into(build):
    model = build(window=[6, 3], silence_step=20)
    for seconds, window in ((2.5, 3), (3.0, 3), (3.1, 6), (6.0, 6), (6.1, 30)):
        wavs = speech(seconds)
        expected = outputs(build(window=window, silence_step=20), wavs)
        for ours, theirs in zip(outputs(model, wavs), expected):
            assert torch.equal(ours, theirs)


def test_the_weights_are_those_of_speechbrains_whisper(build, plain):
    ours, theirs = build(window=4).state_dict(), plain.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_window_can_be_trained_through(build):
    model = build(window=2).train()
    tokens = torch.tensor([[model.bos, 5, 6]] * 2)
    _, logits, _ = model(speech(1.5), tokens)
    logits.logsumexp(-1).sum().backward()
    for name, parameter in model.named_parameters():
        if "embed_positions" not in name:
            assert parameter.grad is not None and parameter.grad.any(), name


def test_spec_augment_masks_in_training_only(build):
    wavs = speech(1.5)
    model = build(window=2, mask_time_prob=0.3)
    still = model._get_mel(wavs)
    assert torch.equal(model._get_mel(wavs), still)
    masked = model.train()._get_mel(wavs)
    assert masked.shape == still.shape and not torch.equal(masked, still)
    unmasked = build(window=2).train()._get_mel(wavs)
    assert torch.equal(unmasked, still)


def test_dropouts_are_the_models_own(build):
    model = build(dropout=0.1, attention_dropout=0.2, activation_dropout=0.3)
    for stack in (model.model.encoder, model.model.decoder):
        assert stack.dropout == stack.layers[0].dropout == 0.1
        assert stack.layers[0].self_attn.dropout == 0.2
        assert stack.layers[0].activation_dropout == 0.3


@pytest.mark.parametrize(
    "options",
    [{"window": 0}, {"window": 31}, {"window": []}, {"silence_step": 0}],
)
def test_wrong_windows_are_refused(build, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        build(**options)


def test_long_signals_are_cut_in_the_pauses(module):
    wav = torch.randn(1_200_000)
    wav[455_000:460_000] = 0
    parts = module.split_long(wav)
    assert torch.equal(torch.cat(parts), wav)
    assert max(map(len, parts)) <= 480_000
    assert 455_000 <= len(parts[0]) <= 460_000
    assert [len(part) for part in module.split_long(wav[:480_000])] == [480_000]


def test_a_long_signal_is_transcribed_part_by_part(module, build):
    model = build(window=6)
    search = S2SWhisperGreedySearcher(
        model, min_decode_ratio=0.0, max_decode_ratio=0.01
    )
    long, short = speech(33, batch=1)[0], speech(2, batch=1)[0]
    wavs = torch.zeros(2, len(long))
    wavs[0], wavs[1, : len(short)] = long, short
    lengths = torch.tensor([1.0, len(short) / len(long)])
    found = model.transcribe_long(search, wavs, lengths)

    def alone(wav):
        encoded = model.forward_encoder(model._get_mel(wav[None]))
        return search(encoded, torch.ones(1))[0][0]

    expected = [token for p in module.split_long(long) for token in alone(p)]
    assert len(module.split_long(long)) == 2
    assert found == [expected, alone(short)]
