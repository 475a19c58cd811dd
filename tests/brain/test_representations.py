"""What layers return, averaged over what is no padding."""

import pytest
import torch
from methods.test_attention_merge import beats_model
from tiny_models import (
    FEATURES,
    tiny_bert,
    tiny_conformer,
    tiny_hubert,
    tiny_whisper,
)

from speechbrain_merge.brain.representations import (
    layer_representations,
    paired_representations,
)
from speechbrain_merge.search import layer_distances


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    from transformers import BertModel

    folder = tiny_bert(tmp_path_factory.mktemp("bert"))
    return BertModel.from_pretrained(folder)


@pytest.fixture(scope="module")
def hubert(tmp_path_factory):
    from transformers import HubertModel

    folder = tiny_hubert(tmp_path_factory.mktemp("hubert"))
    return HubertModel.from_pretrained(folder)


def read(model, batch):
    """Runs BERT on padded tokens."""
    mask = batch["mask"]
    model(input_ids=batch["tokens"], attention_mask=mask)
    return mask.float().mean(dim=1)


def hear(model, batch):
    """Runs HuBERT on padded audio, without telling it of the padding."""
    model(batch["audio"])
    return batch["lengths"]


def batches(lengths=((5, 3), (4, 2))):
    draw = torch.Generator().manual_seed(0)
    made = []
    for each in lengths:
        longest, number = max(each), len(each)
        tokens = torch.randint(1, 30, (number, longest), generator=draw)
        mask = torch.arange(longest)[None] < torch.tensor(each)[:, None]
        audio = torch.randn(number, 4000, generator=draw)
        made.append(
            {
                "tokens": tokens * mask,
                "mask": mask.long(),
                "audio": audio,
                "lengths": torch.tensor(each) / longest,
            }
        )
    return made


def test_layers_are_hugging_faces_hidden_states(bert):
    """And a padded sample has the vector that it has alone."""
    found = layer_representations(bert, batches(), read, progress=False)
    assert found.vectors.shape == (2, 4, 16)
    alone = []
    bert.eval()
    with torch.no_grad():
        for batch in batches():
            for tokens, mask in zip(batch["tokens"], batch["mask"].bool()):
                states = bert(
                    input_ids=tokens[mask][None], output_hidden_states=True
                ).hidden_states[1:]
                alone.append(
                    torch.stack([one[0].mean(dim=0) for one in states])
                )
    torch.testing.assert_close(
        found.vectors, torch.stack(alone, dim=1), rtol=1e-4, atol=1e-5
    )


def test_padding_does_not_count(hubert):
    """Of 12 frames those that a relative length says."""
    found = layer_representations(hubert, batches(), hear, progress=False)
    hubert.eval()
    with torch.no_grad():
        state = hubert(batches()[0]["audio"]).last_hidden_state
    frames = round(3 / 5 * state.shape[1])
    torch.testing.assert_close(
        found.vectors[-1, 1], state[1, :frames].mean(dim=0)
    )
    torch.testing.assert_close(found.vectors[-1, 0], state[0].mean(dim=0))


def test_attention_within_the_layer(hubert):
    """What the attention module returns, before it is added to its input."""
    returned = []
    attention = hubert.encoder.layers[1].attention
    hook = attention.register_forward_hook(
        lambda module, inputs, output: returned.append(output[0])
    )
    found = layer_representations(
        hubert, batches(), hear, capture="attention", progress=False
    )
    hook.remove()
    expected = returned[0][0].mean(dim=0)
    torch.testing.assert_close(found.vectors[1, 0], expected)
    layers = layer_representations(hubert, batches(), hear, progress=False)
    assert not torch.allclose(found.vectors, layers.vectors)


def test_pairs_of_sound_and_text(bert, hubert):
    """One pass over both, then distances; models are left as they were."""
    hubert.train()
    hubert.encoder.layers[0].eval()
    before = {name: one.clone() for name, one in hubert.state_dict().items()}
    said, written = paired_representations(
        hubert, bert, batches(), hear, read, progress=False
    )
    assert said.vectors.shape == written.vectors.shape == (2, 4, 16)
    alone = layer_representations(bert, batches(), read, progress=False)
    assert torch.equal(written.vectors, alone.vectors)
    assert hubert.training and hubert.encoder.layers[1].training
    assert not hubert.encoder.layers[0].training
    assert all(
        torch.equal(one, before[name])
        for name, one in hubert.state_dict().items()
    )
    assert not said.vectors.requires_grad
    found = layer_distances(written, said, progress=False)
    assert len(found.closest(1)) == 1 and "hubert" in found.target


def test_time_before_batch_in_beats():
    """BEATs' layers return (time, batch, width); its output is turned back."""
    model, audio = beats_model(), torch.randn(3, 16000)
    outputs = []

    def listen(beats, wavs):
        outputs.append(beats(wavs, torch.ones(len(wavs)))[0])

    found = layer_representations(model, [audio], listen, progress=False)
    assert found.vectors.shape == (2, 3, 16)
    torch.testing.assert_close(found.vectors[-1], outputs[0].mean(dim=1))


def test_a_conformer_and_models_of_two_stacks(tmp_path):
    from transformers import WhisperForConditionalGeneration

    conformer = tiny_conformer(decoder_layers=1)
    lengths = torch.tensor([1.0, 0.5])

    def run(model, features):
        model(features, lengths)
        return lengths

    features = torch.randn(2, 10, FEATURES)
    with pytest.raises(ValueError, match="encoder and decoder: choose one"):
        layer_representations(conformer, [features], run, progress=False)
    found = layer_representations(
        conformer, [features], run, stack="encoder", progress=False
    )
    assert found.vectors.shape == (2, 2, 16)
    with pytest.raises(ValueError, match=r"does not reach layers \[0\]"):
        layer_representations(
            conformer, [features], run, stack="decoder", progress=False
        )
    whisper = WhisperForConditionalGeneration.from_pretrained(
        tiny_whisper(tmp_path / "whisper")
    )

    def decode(model, tokens):
        mel = torch.zeros(len(tokens), 80, 3000)
        model(input_features=mel, decoder_input_ids=tokens)

    found = layer_representations(
        whisper,
        [torch.tensor([[1, 2, 3]])],
        decode,
        stack="decoder",
        capture="attention",
        progress=False,
    )
    assert found.vectors.shape == (2, 1, 16)


def test_what_goes_wrong_is_said(bert):
    linear = torch.nn.Sequential(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="Sequential has no attention layers"):
        layer_representations(linear, batches(), read, progress=False)
    with pytest.raises(ValueError, match="`capture` is one of"):
        layer_representations(bert, batches(), read, "block", progress=False)
    with pytest.raises(ValueError, match="no batches"):
        layer_representations(bert, [], read, progress=False)
    with pytest.raises(ValueError, match="for 1 lengths"):
        layer_representations(
            bert,
            batches(),
            lambda model, batch: read(model, batch)[:1],
            progress=False,
        )
    with pytest.raises(ValueError, match="Choose|in 'decoder'"):
        layer_representations(
            bert, batches(), read, stack="decoder", progress=False
        )

    def breaks(model, batch):
        raise RuntimeError("a broken recording")

    # Hugging Face has hooks of its own
    hooks = [list(module._forward_hooks) for module in bert.modules()]
    with pytest.raises(RuntimeError, match="a broken recording"):
        layer_representations(bert, batches(), breaks, progress=False)
    assert hooks == [list(module._forward_hooks) for module in bert.modules()]
