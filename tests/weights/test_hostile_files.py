"""Files of weights made to cost time, memory, or the process."""

import json
import resource
import subprocess
import sys
import time
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from speechbrain_merge.weights import fold, open_weights


def compressed(path):
    """A torch file of nearly nothing that stands for a lot."""
    plain = path.with_suffix(".plain")
    torch.save({"weight": torch.zeros(50_000_000)}, plain)
    with zipfile.ZipFile(plain) as source:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
            for entry in source.infolist():
                target.writestr(entry.filename, source.read(entry))
    plain.unlink()


def test_compressed_entries_are_refused_before_they_are_read(tmp_path):
    path = tmp_path / "model.pt"
    compressed(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.process_time()
    with pytest.raises(ValueError, match="model.pt: '.*' in it is compressed"):
        open_weights(path)
    assert time.process_time() - begun < 5
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert after - before < 50_000  # kilobytes; it stands for 200,000


@pytest.mark.parametrize("size", [10**8, 10**12])
def test_expanded_tensors_are_refused(tmp_path, size):
    path = tmp_path / "model.ckpt"
    torch.save({"weight": torch.ones(1).expand(size)}, path)
    begun = time.process_time()
    with pytest.raises(ValueError, match="model.ckpt has .* stand for"):
        open_weights(path)
    assert time.process_time() - begun < 5


def test_many_views_of_one_tensor_are_refused(tmp_path):
    whole = torch.ones(1_000_000)
    views = {f"w{each}": whole[each:] for each in range(100)}
    torch.save(views, tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match="they repeat the same values"):
        open_weights(tmp_path / "model.ckpt")


def test_small_views_are_read(tmp_path):
    whole = torch.arange(10.0)
    content = {"low": whole[:5], "high": whole[5:], "row": whole.expand(1, 10)}
    torch.save(content, tmp_path / "model.ckpt")
    with open_weights(tmp_path / "model.ckpt") as weights:
        for name, tensor in content.items():
            assert torch.equal(weights[name], tensor)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_names_of_many_parts_are_refused(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    content = {"layers." * 20_000 + "weight": torch.ones(2)}
    save_file(content, path) if suffix != ".pt" else torch.save(content, path)
    with pytest.raises(ValueError, match="a name of 140006 characters"):
        open_weights(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_file_that_is_cut_while_it_is_open_is_an_error(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    content = {"weight": torch.ones(1_000_000)}
    save_file(content, path) if suffix != ".pt" else torch.save(content, path)
    # in a process of its own, since the signal would end it
    code = (
        "import sys\n"
        "from speechbrain_merge.weights import fold, open_weights\n"
        "with open_weights(sys.argv[1]) as weights:\n"
        "    open(sys.argv[1], 'r+b').truncate(1000)\n"
        "    try:\n"
        "        print(weights['weight'].sum())\n"
        "    except ValueError as error:\n"
        "        print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert f"model{suffix} has 1000 bytes, and had" in done.stdout


def test_every_byte_of_the_end_of_an_archive_may_be_damaged(tmp_path):
    torch.save({"weight": torch.ones(4)}, tmp_path / "model.ckpt")
    whole = (tmp_path / "model.ckpt").read_bytes()
    (tmp_path / "CKPT.yaml").write_text("unixtime: 1.0\n")
    for at in range(len(whole) - 100, len(whole)):
        for byte in (0x00, 0x02, 0xFF):
            damaged = bytearray(whole)
            damaged[at] = byte
            (tmp_path / "model.ckpt").write_bytes(damaged)
            try:
                with open_weights(tmp_path) as weights:
                    assert torch.equal(weights["model.weight"], torch.ones(4))
            except ValueError as error:
                assert "model.ckpt" in str(error)


LAYER = "a" * 47 + "c"


def adapter(folder, **config):
    """A PEFT adapter of rank 2 for one layer."""
    folder.mkdir()
    name = f"base_model.model.{LAYER}"
    tensors = {
        f"{name}.lora_A.weight": torch.ones(2, 4),
        f"{name}.lora_B.weight": torch.ones(4, 2),
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "lora_alpha": 4, **config}
    (folder / "adapter_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    "pattern",
    ["(a+)+b", "(a|a)*b", "a?" * 40 + "a" * 40, ".*" * 12 + "b", "("],
)
def test_patterns_that_never_end_are_refused(tmp_path, pattern):
    adapter(tmp_path / "adapter", alpha_pattern={pattern: 3})
    begun = time.process_time()
    with pytest.raises(ValueError, match="alpha_pattern"):
        folded(tmp_path / "adapter")
    assert time.process_time() - begun < 10


def folded(folder):
    """The adapter folded into a base."""
    with fold(folder, base={f"{LAYER}.weight": torch.ones(4, 4)}) as weights:
        return dict(weights)


def test_plain_patterns_are_read(tmp_path):
    patterns = {r"layers\.\d+\.(q|k|v)_proj": 2, "a{47}c": 8, ".*": 4}
    adapter(tmp_path / "adapter", alpha_pattern=patterns)
    # 1 + alpha / rank · (ones(4, 2) @ ones(2, 4))
    assert folded(tmp_path / "adapter")[f"{LAYER}.weight"].unique() == 9.0


@pytest.mark.parametrize(
    "config, words",
    [
        ({"lora_alpha": "many"}, "key 'lora_alpha': expected a number"),
        ({"lora_alpha": 1e300}, "key 'lora_alpha'"),
        ({"alpha_pattern": [1]}, "key 'alpha_pattern': expected a mapping"),
        ({"alpha_pattern": {"a": None}}, "key 'a': expected a number"),
    ],
)
def test_a_malformed_adapter_configuration_is_named(tmp_path, config, words):
    adapter(tmp_path / "adapter", **config)
    with pytest.raises(ValueError, match=words):
        folded(tmp_path / "adapter")


class Bytes:
    """As a pickle that makes bytes of any number."""

    def __reduce__(self):
        return bytearray, (6 << 30,)


@pytest.mark.parametrize("archive", [True, False])
def test_bytes_of_any_size_are_refused_before_they_are_made(tmp_path, archive):
    """1.5 KB stood for six gigabytes."""
    path = tmp_path / "model.pt"
    content = {"weight": torch.ones(2), "more": Bytes()}
    torch.save(content, path, _use_new_zipfile_serialization=archive)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="model.pt .* it holds a bytearray"):
        open_weights(path)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert after - before < 50_000


def test_an_archive_that_only_torch_reads_is_refused(tmp_path):
    """What Python's zipfile does not read was not looked at."""
    path = tmp_path / "model.pt"
    compressed(path)
    content = bytearray(path.read_bytes())
    place = content.find(b"PK\x01\x02")
    while place >= 0:
        content[place + 6] = 99  # the version that is needed to read it
        place = content.find(b"PK\x01\x02", place + 4)
    path.write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="directory says: zip file version"):
        open_weights(path)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert after - before < 50_000
