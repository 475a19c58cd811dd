"""Data preparation of the SpeechDomains recipe, on files made here."""

import csv
import gzip
import importlib
import json
import struct
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tiny_domains import same_stat
from tiny_models import tiny_whisper

RECIPE = (
    Path(__file__).resolve().parents[2] / "recipes/SpeechDomains/ASR/whisper"
)
COLUMNS = ["ID", "duration", "wav", "spk_id", "domain", "wrd"]


@pytest.fixture
def recipe(monkeypatch):
    """Imports a module of the recipe, as its train.py does."""
    monkeypatch.syspath_prepend(str(RECIPE))
    return importlib.import_module


@pytest.fixture
def prepare(recipe):
    return recipe("speech_domains_prepare")


def write_domain(folder, domain, split, durations, columns=COLUMNS):
    path = folder / "csv" / f"{domain}_{split}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        for number, duration in enumerate(durations):
            name = f"{domain}_{split}_{number}"
            row = dict(ID=name, duration=duration, wav=f"$data_root/{name}.wav")
            row.update(spk_id="s", domain=domain, wrd="A B")
            writer.writerow(row)
    return path


def read_durations(path):
    with open(path, newline="") as file:
        return [float(row["duration"]) for row in csv.DictReader(file)]


def skewed_durations(number, seed=0):
    return np.random.default_rng(seed).gamma(2.0, 4.0, number).clip(0.5, 60)


def test_manifests_join_the_domains_of_a_run(prepare, tmp_path):
    data, out = tmp_path / "data", tmp_path / "out"
    for domain in ("a", "b"):
        write_domain(data, domain, "train", [1, 2, 30, 31])
        write_domain(data, domain, "valid", [1, 2])
    write_domain(data, "c", "test", [3])
    prepare.prepare_speech_domains(str(data), str(out), ["a", "b"], ["c"])
    # what is longer than Whisper's window is not trained on
    assert read_durations(out / "train.csv") == [1, 2, 30, 1, 2, 30]
    assert read_durations(out / "valid.csv") == [1, 2, 1, 2]
    assert read_durations(out / "valid_b.csv") == [1, 2]
    assert "$data_root/a_train_0.wav" in (out / "train.csv").read_text()


def test_manifests_are_made_again_only_when_something_changed(
    prepare, tmp_path
):
    data, out = tmp_path / "data", tmp_path / "out"
    for split in ("train", "valid", "test"):
        write_domain(data, "a", split, [1, 2, 3])

    def run(**options):
        prepare.prepare_speech_domains(
            str(data), str(out), ["a"], ["a"], **options
        )
        return (out / "train.csv").stat().st_mtime_ns

    first = run()
    assert run() == first
    assert run(seed=7) > first
    second = run(seed=7)
    write_domain(data, "a", "train", [1, 2, 3, 4])
    assert run(seed=7) > second
    assert read_durations(out / "train.csv") == [1, 2, 3, 4]
    # the same size at the same time, as a copy of a corrected file may have
    with same_stat(data / "csv" / "a_train.csv"):
        write_domain(data, "a", "train", [5, 2, 3, 4])
    run(seed=7)
    assert read_durations(out / "train.csv") == [5, 2, 3, 4]


def test_a_missing_file_is_named(prepare, tmp_path):
    write_domain(tmp_path, "a", "train", [1])
    with pytest.raises(FileNotFoundError, match=r"a_valid\.csv was not found"):
        prepare.prepare_speech_domains(str(tmp_path), str(tmp_path), ["a"])


def test_a_missing_column_is_named_with_its_file(prepare, tmp_path):
    columns = [column for column in COLUMNS if column != "wrd"]
    write_domain(tmp_path, "a", "train", [1], columns)
    with pytest.raises(ValueError, match=r"a_train\.csv lacks the column wrd"):
        prepare.read_domain(tmp_path / "csv" / "a_train.csv")


def test_empty_domains_and_bad_durations_are_named(prepare, tmp_path):
    with pytest.raises(ValueError, match="no utterances"):
        prepare.read_domain(write_domain(tmp_path, "a", "train", []))
    with pytest.raises(ValueError, match="a_test_0 is 'long'"):
        prepare.read_domain(write_domain(tmp_path, "a", "test", ["long"]))


def test_an_id_that_stands_twice_is_named_with_its_files(prepare, tmp_path):
    for domain in ("a", "b"):
        for split in ("train", "valid", "test"):
            write_domain(tmp_path, domain, split, [1.0, 2.0])
    other, path = (tmp_path / f"csv/{name}_train.csv" for name in "ab")
    written = path.read_text()
    path.write_text(written.replace("b_train_0,", "a_train_1,"))
    with pytest.raises(ValueError) as raised:
        prepare.prepare_speech_domains(tmp_path, tmp_path / "out", ["a", "b"])
    for words in ("a_train_1", str(other), str(path), "another ID"):
        assert words in str(raised.value)
    # apart, the two are no trouble
    prepare.prepare_speech_domains(tmp_path, tmp_path / "one", ["b"])
    path.write_text(written.replace("b_train_0,", "b_train_1,"))
    with pytest.raises(ValueError, match="b_train.csv: the ID b_train_1"):
        prepare.prepare_speech_domains(tmp_path, tmp_path / "two", ["b"])


def test_hours_keep_the_distribution_of_durations(prepare):
    durations = skewed_durations(3000)
    rows = [{"ID": i, "duration": d} for i, d in enumerate(durations)]
    drawn = prepare.draw_hours(rows, hours=1.0, seed=3)
    chosen = np.array([row["duration"] for row in drawn])
    assert 0.95 * 3600 < chosen.sum() <= 3600
    for quantile in (0.1, 0.25, 0.5, 0.75, 0.9):
        expected = np.quantile(durations, quantile)
        assert np.quantile(chosen, quantile) == pytest.approx(expected, rel=0.1)
    assert drawn == prepare.draw_hours(rows, hours=1.0, seed=3)
    assert drawn != prepare.draw_hours(rows, hours=1.0, seed=4)


def test_fewer_hours_are_a_part_of_more(prepare):
    durations = skewed_durations(2000)
    rows = [{"ID": i, "duration": d} for i, d in enumerate(durations)]
    names = [
        {row["ID"] for row in prepare.draw_hours(rows, hours, seed=3)}
        for hours in (0.5, 1.0, 2.0)
    ]
    assert names[0] < names[1] < names[2]


def test_more_hours_than_there_are_give_all(prepare):
    rows = [{"ID": 0, "duration": 3.0}, {"ID": 1, "duration": 4.0}]
    assert prepare.draw_hours(rows, 5, seed=0) == rows


def test_selection_has_all_long_utterances_and_the_part_asked_for(prepare):
    durations = list(skewed_durations(380).clip(0.5, 30)) + [31.0, 45.0] * 10
    rows = [{"ID": i, "duration": d} for i, d in enumerate(durations)]
    drawn = prepare.draw_selection(rows, 0.15, seed=1)
    assert len(drawn) == 60
    assert sum(row["duration"] > 30 for row in drawn) == 20
    short = np.array([r["duration"] for r in drawn if r["duration"] <= 30])
    assert np.median(short) == pytest.approx(
        np.median(durations[:380]), rel=0.2
    )


def test_selection_of_mostly_long_utterances_has_them_all(prepare):
    rows = [{"ID": i, "duration": 40.0} for i in range(9)]
    rows.append({"ID": 9, "duration": 4.0})
    assert prepare.draw_selection(rows, 0.15, seed=1) == rows[:9]


@pytest.mark.parametrize("fraction", [0, 1.5, -0.1])
def test_a_wrong_fraction_is_refused(prepare, tmp_path, fraction):
    with pytest.raises(ValueError, match="select_fraction"):
        prepare.prepare_speech_domains(
            str(tmp_path), str(tmp_path), ["a"], select_fraction=fraction
        )


def string(text):
    return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"


def tensor(name, array):
    kinds = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}
    array = np.asarray(array)
    content = string(name) + struct.pack("<B", array.ndim)
    content += struct.pack(f"<{array.ndim}I", *array.shape)
    content += struct.pack("<BI", kinds[str(array.dtype)], array.nbytes)
    return content + array.tobytes()


def ctranslate2(tensors, version=6):
    content = struct.pack("<I", version) + string("WhisperSpec")
    content += struct.pack("<II", 3, len(tensors))
    content += b"".join(tensor(name, value) for name, value in tensors.items())
    aliases = [("decoder/projection/weight", "decoder/embeddings/weight")]
    content += struct.pack("<I", len(aliases))
    return content + b"".join(string(a) + string(b) for a, b in aliases)


def as_ctranslate2(state, heads):
    """A Hugging Face state dict as CTranslate2 names and stacks it."""
    modules = {
        "self_attn_layer_norm": "self_attention/layer_norm",
        "self_attn.out_proj": "self_attention/linear_1",
        "encoder_attn_layer_norm": "attention/layer_norm",
        "encoder_attn.q_proj": "attention/linear_0",
        "encoder_attn.out_proj": "attention/linear_2",
        "final_layer_norm": "ffn/layer_norm",
        "fc1": "ffn/linear_0",
        "fc2": "ffn/linear_1",
    }
    tensors, stacks = {}, {}
    for name, value in state.items():
        stack, *parts = name.removeprefix("model.").split(".")
        parameter = parts.pop()
        if parts[-1].endswith("norm"):
            parameter = {"weight": "gamma", "bias": "beta"}[parameter]
        if parts[0] == "layers":
            layer, module = f"{stack}/layer_{parts[1]}", ".".join(parts[2:])
            if module in modules:
                tensors[f"{layer}/{modules[module]}/{parameter}"] = value
            else:
                attention, projection = module.split(".")
                key = layer, attention, parameter
                stacks.setdefault(key, {})[projection[0]] = value
        elif parts[0] == "embed_positions":
            tensors[f"{stack}/position_encodings/encodings"] = value
        elif parts[0] == "embed_tokens":
            tensors[f"{stack}/embeddings/weight"] = value
        else:
            tensors[f"{stack}/{parts[0]}/{parameter}"] = value
    for (layer, attention, parameter), parts in stacks.items():
        names, module = "qkv", "self_attention/linear_0"
        if attention == "encoder_attn":
            names, module = "kv", "attention/linear_1"
        zero = torch.zeros_like(parts["v"])
        stacked = torch.cat([parts.get(name, zero) for name in names])
        tensors[f"{layer}/{module}/{parameter}"] = stacked
    content = {name: value.numpy() for name, value in sorted(tensors.items())}
    for stack in ("encoder", "decoder"):
        content[f"{stack}/num_heads"] = np.int16(heads)
        content[f"{stack}/activation"] = np.int8(3)
    return content


def test_a_whisper_comes_back_from_ctranslate2(recipe, tmp_path):
    from transformers import WhisperForConditionalGeneration

    source = tiny_whisper(tmp_path / "source", layers=2, heads=2, d_model=16)
    model = WhisperForConditionalGeneration.from_pretrained(source)
    state = dict(model.model.named_parameters(prefix="model"))
    state = {name: value.detach() for name, value in state.items()}
    content = ctranslate2(as_ctranslate2(state, heads=2))
    tokenizer = json.loads((Path(source) / "tokenizer.json").read_text())
    recipe("whisper_prepare").write_whisper(
        tmp_path / "written", content, tokenizer
    )
    loaded, report = WhisperForConditionalGeneration.from_pretrained(
        tmp_path / "written", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert loaded.config.encoder_attention_heads == 2
    expected = model.state_dict()
    for name, value in loaded.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0)


def test_half_precision_is_widened(recipe):
    module = recipe("ctranslate2_prepare")
    array = np.array([0.1, 65504.0], dtype=np.float16)
    tensors, settings = module.read_ctranslate2(
        ctranslate2({"encoder/conv1/bias": array, "encoder/n": np.int32(-7)})
    )
    assert settings == {"encoder/n": -7}
    state = module.to_hugging_face(tensors)
    value = state["model.encoder.conv1.bias"]
    assert value.dtype == torch.float32
    assert value.tolist() == array.astype(np.float32).tolist()


def test_quantised_weights_are_refused(recipe):
    content = ctranslate2({"encoder/conv1/weight": np.ones((2, 2), np.int8)})
    with pytest.raises(ValueError, match="encoder/conv1/weight .* quantised"):
        recipe("ctranslate2_prepare").read_ctranslate2(content)


def test_other_versions_and_damaged_files_are_refused(recipe):
    read = recipe("ctranslate2_prepare").read_ctranslate2
    with pytest.raises(ValueError, match="version 5, expected 6"):
        read(ctranslate2({}, version=5))
    with pytest.raises(ValueError, match="should have ended"):
        read(ctranslate2({}) + b"more")
    with pytest.raises((ValueError, struct.error)):
        read(ctranslate2({"a": np.ones(9, np.float32)})[:-40])


@pytest.mark.parametrize(
    "name",
    [
        "encoder/conv3/weight",
        "encoder/layer_0/ffn/linear_2/weight",
        "decoder/layer_0/ffn/linear_0/scale",
        "surprise",
    ],
)
def test_a_tensor_without_a_place_is_refused(recipe, name):
    array = {name: np.ones(3, np.float32)}
    with pytest.raises(ValueError, match=f"{name} has no place"):
        recipe("ctranslate2_prepare").to_hugging_face(array)


def test_a_key_bias_is_refused(recipe):
    name = "encoder/layer_0/self_attention/linear_0/bias"
    with pytest.raises(ValueError, match="bias that is not zero"):
        recipe("ctranslate2_prepare").to_hugging_face(
            {name: np.ones(6, np.float32)}
        )


def test_weights_with_another_hash_are_refused(recipe):
    check = recipe("whisper_prepare").check_sha256
    with pytest.raises(ValueError, match="sha256 is .* instead of 00"):
        check(b"weights", "00", "a-package==1.0")


def test_an_unknown_whisper_is_refused(recipe, tmp_path):
    with pytest.raises(ValueError, match="'huge': choose one of"):
        recipe("whisper_prepare").prepare_whisper(tmp_path / "w", name="huge")


@pytest.fixture
def debian(tmp_path):
    """The unpacked packages, in small."""
    root = tmp_path / "root"
    sounds = root / "usr/share/asterisk/sounds/en_US_f_Allison"
    book = root / "usr/share/doc/flite/examples/alice"
    texts = root / "usr/share/doc/asterisk-core-sounds-en"
    for folder in (sounds, book.parent, texts):
        folder.mkdir(parents=True)
    lines = ["; Core sounds", "", "beep: [a beep]", "many: Press 10 now."]
    for number, word in enumerate("one two three four five six".split()):
        lines.append(f"prompt-{number}: Please press {number}, {word}!")
        lines.append(f"again-{number}: please press {number} {word}")
        for name in ("prompt", "again"):
            soundfile.write(
                sounds / f"{name}-{number}.wav", np.zeros(16000), 8000
            )
    with gzip.open(texts / "core-sounds-en.txt.gz", "wt") as file:
        file.write("\n".join(lines))
    book.write_text(
        ".\n".join(f"Alice met the {w} there" for w in "abcdefghij")
    )
    return root


def test_no_sentence_is_in_two_sets(recipe, debian, monkeypatch):
    module = recipe("embedded_speech_prepare")
    sizes = {
        "prompts": (0, 0, 2),
        "reverb": (2, 1, 1),
        "stories": (0, 0, 3),
        "accent": (4, 1, 2),
        "codes": (20, 5, 5),
    }
    monkeypatch.setattr(module, "SIZES", sizes)
    plan = module.plan_utterances(debian, seed=5)
    where = {}
    for row in plan:
        where.setdefault(row["wrd"], set()).add((row["domain"], row["split"]))
    assert all(len(places) == 1 for places in where.values())
    assert len({row["ID"] for row in plan}) == len(plan)
    # a sentence of reverb's training set is heard in two rooms
    train = [
        r for r in plan if (r["domain"], r["split"]) == ("reverb", "train")
    ]
    assert len(train) == 4 and len({row["wrd"] for row in train}) == 2
    assert len({tuple(row["seed"]) for row in train}) == 4
    assert plan == module.plan_utterances(debian, seed=5)
    assert plan != module.plan_utterances(debian, seed=6)


def test_prompts_are_sentences_once_each(recipe, debian):
    prompts = recipe("embedded_speech_prepare").read_prompts(debian)
    sentences = [prompt["wrd"] for prompt in prompts]
    assert len(sentences) == len(set(sentences)) == 6
    assert "PLEASE PRESS ZERO ONE" in sentences


def test_too_few_sentences_are_an_error(recipe, debian, monkeypatch):
    module = recipe("embedded_speech_prepare")
    monkeypatch.setattr(module, "SIZES", dict(module.SIZES, prompts=(0, 0, 7)))
    with pytest.raises(RuntimeError, match="6 sentences are left for 7"):
        module.plan_utterances(debian, seed=5)


def test_codes_mix_letters_and_digits(recipe):
    codes = recipe("embedded_speech_prepare").draw_codes(200, seed=1)
    assert len({code["wrd"] for code in codes}) == 200
    for code in codes:
        sizes = [len(word) for word in code["wrd"].split()]
        assert len(sizes) == 5 and min(sizes) == 1 and max(sizes) > 1


def test_reverberation_keeps_the_start_and_adds_an_echo(recipe):
    module = recipe("embedded_speech_prepare")
    impulse = np.zeros(16000, dtype=np.float32)
    impulse[100] = 1.0
    wet = module.reverberate(impulse, np.random.default_rng(0))
    assert len(wet) == 24000 and not wet[:99].round(4).any()
    early, late = wet[101:4101], wet[20000:24000]
    # 60 dB in 1.5 s: 18000 samples apart, 45 dB
    decay = 20 * np.log10(np.std(early) / np.std(late))
    assert decay == pytest.approx(20 * 3 * 19900 / 24000, abs=3)


def test_without_debian_tools_the_way_out_is_named(
    recipe, tmp_path, monkeypatch
):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="--data_folder"):
        recipe("embedded_speech_prepare").unpack_packages(
            ["flite"], tmp_path / "packages"
        )


def test_sentences_of_recordings_as_a_voice_speaks_them(recipe, tmp_path):
    module = recipe("synthetic_speech_prepare")
    write_domain(tmp_path, "digits", "train", [1.0])
    for split in ("train", "valid"):
        write_domain(tmp_path, "read", split, [1.0])
    with pytest.raises(FileNotFoundError, match="has no read_test.csv:"):
        module.prepare_synthetic_speech(tmp_path, tmp_path / "made", ["read"])
    assert not (tmp_path / "made").exists()
    (row,) = module.read_rows(tmp_path / "csv/read_train.csv")
    made = module.synthetic_row(row, "read_synthetic", "flite_slt")
    assert made["wrd"] == row["wrd"] and made["ID"] != row["ID"]
    assert made["text"] == f"{row['wrd'].lower()}."
    assert made["wav"] == f"$data_root/wav/read_synthetic/{made['ID']}.wav"


def test_manifests_that_several_jobs_prepare_are_never_seen_in_part(
    prepare, tmp_path
):
    for split in ("train", "valid", "test"):
        write_domain(tmp_path, "read", split, [1.0] * 4000)
    folder = tmp_path / "manifests"
    options = {"train_domains": ["read"], "test_domains": ["read"]}
    prepare.prepare_speech_domains(tmp_path, folder, **options)
    done, found = threading.Event(), set()

    def look():
        while not done.is_set():
            for name in ("train.csv", "valid_read.csv", "test_read.csv"):
                found.add(len(read_durations(folder / name)))

    reader = threading.Thread(target=look)
    reader.start()
    for _ in range(10):
        # another job that has not seen them yet
        (folder / "manifests.json").unlink()
        prepare.prepare_speech_domains(tmp_path, folder, **options)
    done.set()
    reader.join()
    assert found == {4000}
    assert not list(folder.glob("*.partial"))


def make_recordings(folder):
    """Two domains of tones, of other speakers in each set, and noise."""
    random = np.random.default_rng(0)
    (folder / "csv").mkdir(parents=True)
    (folder / "noise").mkdir()
    noise = np.concatenate([np.zeros(8000), random.normal(0, 0.1, 8000)])
    soundfile.write(folder / "noise" / "one.wav", noise, 16000)
    for domain in ("a", "b"):
        for part, split in enumerate(("train", "valid", "test")):
            path = folder / "csv" / f"{domain}_{split}.csv"
            with open(path, "w", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS)
                writer.writeheader()
                for number in range(4):
                    name = f"{domain}-{split}-{number}"
                    time = np.arange(4000) / 16000
                    tone = 0.3 * np.sin(2 * np.pi * 500 * time)
                    soundfile.write(folder / f"{name}.wav", tone, 16000)
                    row = dict(ID=name, duration=0.25, domain=domain)
                    row.update(wav=f"$data_root/{name}.wav", wrd=f"W{number}")
                    writer.writerow(row | {"spk_id": f"{domain}{part}"})
    return folder


def test_rooms_are_composed_of_the_same_sets_and_drawn_by_a_seed(
    recipe, prepare, tmp_path
):
    rooms = recipe("rooms_prepare")
    data = make_recordings(tmp_path / "data")

    def compose(name, **more):
        more = {"sources": ["a"], "utterances": {"train": 3}, **more}
        return Path(rooms.prepare_rooms(data, tmp_path / name, **more))

    def heard(folder, split):
        rows = prepare.read_domain(folder / "csv" / f"rooms_{split}.csv")
        assert all(row["domain"] == "rooms" for row in rows)
        return {
            row["ID"]: soundfile.read(
                row["wav"].replace("$data_root", str(folder))
            )[0]
            for row in rows
        }

    first, second = compose("first"), compose("second")
    other = compose("other", seed=7, utterances={})
    for split, number in (("train", 3), ("valid", 4), ("test", 4)):
        made, again = heard(first, split), heard(second, split)
        assert len(made) == number
        assert all(name.startswith(f"rooms-a-{split}-") for name in made)
        for name, signal in made.items():
            np.testing.assert_array_equal(signal, again[name])
            assert len(signal) == 4000  # as long as it was
            assert not np.array_equal(signal, heard(other, split)[name])
    # the other domains are listed beside it, with their audio where it lies
    [row, *_] = prepare.read_domain(first / "csv" / "b_test.csv")
    assert Path(row["wav"]) == data / "b-test-0.wav" and row["spk_id"] == "b2"
    # the first half of the noise, which is silent here, is not for tests
    for split, silent in (("train", True), ("valid", True), ("test", False)):
        noise, _ = soundfile.read(first / "heard_with" / f"{split}-noise-0.wav")
        assert len(noise) == 8000 and bool((noise == 0).all()) is silent
    with pytest.raises(ValueError, match="other settings.*snr"):
        compose("first", snr=(0, 5))


def test_rooms_need_noise_and_one_rate(recipe, tmp_path):
    rooms = recipe("rooms_prepare")
    data = make_recordings(tmp_path / "data")
    soundfile.write(data / "noise" / "one.wav", np.zeros(800), 8000)
    with pytest.raises(ValueError, match="one.wav has 8000 Hz"):
        rooms.prepare_rooms(data, tmp_path / "rooms", sources=["a"])
    (data / "noise" / "one.wav").unlink()
    with pytest.raises(FileNotFoundError, match="noise has no recordings"):
        rooms.prepare_rooms(data, tmp_path / "rooms", sources=["a"])
