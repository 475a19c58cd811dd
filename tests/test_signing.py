"""Signed merges and exports: made and checked with real keys, by the command.

Each way to be wrong is one line that says what is wrong, and the status 2.
"""

import base64
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric import ec
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from signing_keys import write_certificate, write_key
from tiny_models import tiny_whisper

from speechbrain.integrations.huggingface.whisper import Whisper
from speechbrain_merge import Signer, merge, verify_signature
from speechbrain_merge.cli import main
from speechbrain_merge.records.signing import PASSWORD, WrongSignature
from speechbrain_merge.weights import write_weights


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two models and two pairs of keys, where commands run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(PASSWORD, raising=False)
    for value, name in enumerate("ab"):
        weights = {"layer.weight": torch.full((4, 4), float(value))}
        write_weights(f"{name}.safetensors", weights)
    for name in ("key", "other"):
        write_key(tmp_path, name)
    return tmp_path


def run(line):
    """Exit status of a command line."""
    return main(line.split())


def merged(*more):
    """A signed merge."""
    line = "merge average a.safetensors b.safetensors -o m.safetensors --quiet"
    assert run(" ".join([line, "--sign key.pem", *more])) == 0
    return Path("m.safetensors")


def refused(capsys, line, words):
    """Asserts that a command fails by one line with some words in it."""
    capsys.readouterr()
    assert run(line) == 2
    error = capsys.readouterr().err.strip()
    assert words in error and "\n" not in error, error


def tampered_record(path, change):
    """Changes the record in a merged file, and nothing else."""
    with safe_open(path, "pt") as file:
        notes = file.metadata()
    record = json.loads(notes["merge"])
    change(record)
    save_file(load_file(path), path, {**notes, "merge": json.dumps(record)})


def test_a_merge_is_signed_and_verified(folder, capsys):
    merged()
    assert Path("m.safetensors.sig").is_file()
    capsys.readouterr()
    assert run("verify m.safetensors --key key.pub") == 0
    out = capsys.readouterr().out
    assert "m.safetensors: as signed" in out and "key.pub" in out
    assert out.count("as recorded") == 2  # a and b
    # what a third party's tool says
    command = [sys.executable, "-m", "model_signing", "verify", "key"]
    command += ["--signature", "m.safetensors.sig", "--public_key", "key.pub"]
    done = subprocess.run([*command, "m.safetensors"], capture_output=True)
    assert done.returncode == 0, done.stderr
    # the signature goes with the file, wherever that is
    Path("away").mkdir()
    for name in ("m.safetensors", "m.safetensors.sig"):
        shutil.move(name, f"away/{name}")
    assert run("verify away/m.safetensors --key key.pub") == 0
    shutil.move("away/m.safetensors.sig", "s")
    line = "verify away/m.safetensors --key key.pub"
    refused(capsys, line, "has no signature")
    assert run(line + " --signature s") == 0


def test_changed_weights(folder, capsys):
    path = merged()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    refused(
        capsys,
        "verify m.safetensors --key key.pub",
        "m.safetensors is not what was signed: Hash mismatch for '.': "
        f"Expected {_signed_hash()}, Actual "
        f"{hashlib.sha256(content).hexdigest()}",
    )


def _signed_hash():
    bundle = json.loads(Path("m.safetensors.sig").read_text())
    payload = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    return payload["predicate"]["resources"][0]["digest"]


def test_changed_provenance(folder, capsys):
    tampered_record(merged(), lambda record: record["sources"].pop())
    line = "verify m.safetensors --key key.pub"
    refused(capsys, line, "is not what was signed")


def test_the_signature_of_something_else(folder, capsys):
    merged()
    weights = ["a.safetensors"]
    merge("average", weights, output="n.safetensors", sign="key.pem")
    shutil.copy("n.safetensors.sig", "m.safetensors.sig")
    line = "verify m.safetensors --key key.pub"
    refused(capsys, line, "is not what was signed")


def test_another_key(folder, capsys):
    merged()
    line = "verify m.safetensors --key other.pub"
    refused(capsys, line, "was not made with the key of other.pub")


def test_a_forged_signature(folder, capsys):
    """The hash in it is made to fit the changed file."""
    path = merged()
    bundle = json.loads(Path("m.safetensors.sig").read_text())
    envelope = bundle["dsseEnvelope"]
    payload = json.loads(base64.b64decode(envelope["payload"]))
    path.write_bytes(path.read_bytes() + b"\0")
    digest = hashlib.sha256(path.read_bytes()).digest()
    payload["predicate"]["resources"][0]["digest"] = digest.hex()
    whole = hashlib.sha256(digest).hexdigest()
    payload["subject"][0]["digest"]["sha256"] = whole
    text = json.dumps(payload).encode()
    envelope["payload"] = base64.b64encode(text).decode()
    Path("m.safetensors.sig").write_text(json.dumps(bundle))
    line = "verify m.safetensors --key key.pub"
    refused(capsys, line, "is forged or damaged")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff\xfe",
        b'{"verificationMaterial": 3}',
        b"[" * 9999,
    ],
)
def test_a_signature_that_is_none(folder, capsys, content):
    merged()
    Path("m.safetensors.sig").write_bytes(content)
    line = "verify m.safetensors --key key.pub"
    refused(capsys, line, "m.safetensors.sig is no signature of this kind")


def test_a_huge_signature_is_not_read(folder, capsys):
    merged()
    with open("m.safetensors.sig", "r+b") as file:
        file.truncate(1 << 40)
    line = "verify m.safetensors --key key.pub"
    refused(capsys, line, "m.safetensors.sig has more than")


@pytest.mark.parametrize(
    "options, words",
    [
        ("--sign none.pem", "the private key none.pem is not there"),
        (
            "--sign key.pub",
            "key.pub cannot be used to sign: expected a private",
        ),
        ("--sign a.safetensors", "a.safetensors cannot be used to sign"),
        ("--sign locked.pem", "Password was not given"),
        ("--sign odd.pem", "Unsupported key for curve"),
        ("--certificate key.crt", "no --sign with its private key"),
        ("--sign key.pem --certificate none", "the certificate none is not"),
        (
            "--sign key.pem --certificate key.pub",
            "with the certificate key.pub",
        ),
        ("--sign key.pem --certificate other.crt", "does not match"),
        ("--sign key.pem --certificate-chain key.pub", "and no certificate"),
    ],
)
def test_what_cannot_sign_is_known_before_merging(
    folder, capsys, options, words
):
    write_key(folder, "locked", password="open")
    write_key(folder, "odd", curve=ec.SECP256K1())
    write_certificate(folder, "other")
    line = "merge average a.safetensors b.safetensors -o m.safetensors"
    refused(capsys, f"{line} {options}", words)
    assert not Path("m.safetensors").exists()


@pytest.mark.parametrize(
    "options, words",
    [
        ("", "give the public key"),
        ("--key key.pub --certificate-chain key.crt", "one of the two"),
        ("--key none.pub", "the public key none.pub is not there"),
        ("--key key.pem", "key.pem cannot be used to verify"),
        ("--certificate-chain none.crt", "the certificate none.crt is not"),
        ("--certificate-chain key.pub", "cannot be used to verify"),
    ],
)
def test_what_cannot_verify(folder, capsys, options, words):
    merged()
    refused(capsys, f"verify m.safetensors {options}", words)


def test_without_the_package(folder, capsys, monkeypatch):
    path = merged()
    for name in [each for each in sys.modules if each.startswith("model_sig")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "model_signing", None)
    words = "install 'speechbrain_merge[sign]'"
    refused(capsys, "verify m.safetensors --key key.pub", words)
    path.unlink()
    line = "merge average a.safetensors -o m.safetensors --sign key.pem"
    refused(capsys, line, words)
    assert not path.exists()
    # and nothing else needs it
    assert run("merge average a.safetensors -o m.safetensors --quiet") == 0


@pytest.mark.parametrize("curve", [ec.SECP384R1(), ec.SECP521R1()])
def test_other_curves_and_passwords(folder, monkeypatch, curve):
    write_key(folder, "key", curve, password="open")
    monkeypatch.setenv(PASSWORD, "open")
    merged()
    assert run("verify m.safetensors --key key.pub") == 0


def test_certificates(folder, capsys):
    for name in ("root", "middle", "stranger"):
        write_key(folder, name)
    write_certificate(folder, "root")
    write_certificate(folder, "middle", "root")
    write_certificate(folder, "key", "middle", authority=False)
    write_certificate(folder, "stranger")
    merged("--certificate key.crt --certificate-chain middle.crt")
    line = "verify m.safetensors --certificate-chain"
    assert run(f"{line} root.crt") == 0
    refused(capsys, f"{line} stranger.crt", "not made by anyone whom you trust")
    Path("m.safetensors").write_bytes(Path("a.safetensors").read_bytes())
    refused(capsys, f"{line} root.crt", "is not what was signed")
    # one kind is not taken for the other
    line = "verify m.safetensors --key key.pub"
    refused(capsys, line, "was made in another way")
    Path("m.safetensors").unlink()
    merged()
    line = "verify m.safetensors --certificate-chain root.crt"
    refused(capsys, line, "was made in another way")


def test_a_certificate_that_may_not_sign(folder, capsys):
    write_key(folder, "root")
    write_certificate(folder, "root")
    write_certificate(folder, "key", "root", authority=True)
    merged("--certificate key.crt")
    line = "verify m.safetensors --certificate-chain root.crt"
    refused(capsys, line, "cannot be used for signing")


def test_every_output_of_a_plan_is_signed(folder, capsys):
    Path("plan.yaml").write_text(
        "stages:\n"
        "  first: {method: average, experts: [a.safetensors], "
        "output: first.safetensors}\n"
        "  hidden: {method: average, experts: [first, b.safetensors]}\n"
        "  last: {method: average, experts: [hidden, a.safetensors], "
        "output: last.safetensors}\n"
    )
    # what is in the way of the last signature is known before the first merge
    notes = Path("last.safetensors.sig")
    notes.write_text("mine")
    there = sorted(folder.iterdir())
    refused(capsys, "merge plan.yaml --quiet --sign key.pem", notes.name)
    assert sorted(folder.iterdir()) == there
    notes.unlink()
    assert run("merge plan.yaml --quiet") == 0
    capsys.readouterr()
    assert run("merge plan.yaml --quiet --sign key.pem") == 0
    assert capsys.readouterr().out.count("up to date") == 2
    assert sorted(path.name for path in folder.glob("*.sig")) == [
        "first.safetensors.sig",
        "last.safetensors.sig",
    ]
    for name in ("first", "last"):
        assert run(f"verify {name}.safetensors --key key.pub") == 0
    # what lies at the path of a source now says nothing about the model
    capsys.readouterr()
    save_file({"layer.weight": torch.ones(4, 4)}, "a.safetensors")
    assert run("verify last.safetensors --key key.pub") == 0
    assert "changed" in capsys.readouterr().out
    line = "inspect --verify last.safetensors"
    refused(capsys, line, "a.safetensors: its content has the hash")


@pytest.mark.parametrize("sign", ["", " --sign key.pem"])
def test_a_signed_folder_is_merged_again(folder, capsys, sign):
    for seed in (0, 1, 2):
        torch.manual_seed(seed)
        tiny_whisper(folder / f"hub{seed}", layers=1)
    line = "merge average hub0 hub1 -o mean --quiet --different-bases"
    assert run(f"{line} --sign key.pem") == 0
    assert run("verify mean --key key.pub") == 0
    # up to date, and signed again
    assert run(f"{line} --sign key.pem") == 0
    assert run("verify mean --key key.pub") == 0
    line = line.replace("hub1", "hub2")
    assert run(line + sign) == 0, capsys.readouterr().err
    assert (run("verify mean --key key.pub") == 0) == bool(sign)


def test_a_signature_elsewhere_covers_what_is_in_the_usual_place(exported):
    folder, _ = exported
    shutil.copy(folder / "model.sig", "elsewhere.sig")
    line = f"verify {folder} --key key.pub --signature elsewhere.sig"
    assert run(line) == 0  # the signature itself
    (folder / "model.sig").write_text("import os")
    assert run(line) == 2
    (folder / "model.sig").unlink()
    assert run(line) == 0
    (folder / "model.sig").mkdir()
    (folder / "model.sig" / "code.py").write_text("import os")
    assert run(line) == 2


def test_signing_again(folder):
    """A signature is replaced whole; nothing else is left."""
    path = merged()
    first = Path("m.safetensors.sig").read_bytes()
    Signer("other.pem").sign(path)
    assert Path("m.safetensors.sig").read_bytes() != first
    verify_signature(path, key="other.pub")
    with pytest.raises(WrongSignature, match="not made with the key of key"):
        verify_signature(path, key="key.pub")
    with pytest.raises(ValueError, match="give an `output`"):
        merge("average", ["a.safetensors"], sign="key.pem")
    with pytest.raises(ValueError, match="`sign` must be the file of"):
        merge("average", ["a.safetensors"], output="n.safetensors", sign=3)
    assert not list(folder.glob(".*"))


@pytest.fixture
def exported(folder, capsys):
    """A signed export of a merged Whisper, by the command."""
    hub = tiny_whisper(folder / "hub", layers=1)
    whisper = Whisper(hub, hub)
    for value in (1, 2):
        state = {
            f"whisper.{name}": tensor + value
            for name, tensor in whisper.state_dict().items()
        }
        write_weights(f"{value}.safetensors", state)
    line = "merge average 1.safetensors 2.safetensors -o w.safetensors --quiet"
    assert run(line) == 0
    line = f"export whisper w.safetensors --whisper {hub} -o model"
    assert run(f"{line} --sign key.pem") == 0
    capsys.readouterr()
    return Path("model"), line


def test_an_export_is_signed_whole(exported, capsys):
    model, line = exported
    verify = "verify model --key key.pub"
    assert run(verify) == 0
    out = capsys.readouterr().out
    assert "model: as signed (model/model.sig" in out
    assert "average" in out and out.count("as recorded") == 2
    command = [sys.executable, "-m", "model_signing", "verify", "key"]
    command += ["--signature", "model/model.sig", "--public_key", "key.pub"]
    done = subprocess.run([*command, "model"], capture_output=True)
    assert done.returncode == 0, done.stderr
    # it is an export as any other, which the next one replaces
    assert run(line) == 0
    assert not (model / "model.sig").exists()
    refused(capsys, verify, "model has no signature")
    assert run(f"{line} --sign key.pem") == 0
    assert run(verify) == 0
    # ... and may lie somewhere else
    model.rename("moved")
    assert run("verify moved --key key.pub") == 0


def test_a_changed_export(exported, capsys):
    model, _ = exported
    verify = "verify model --key key.pub"
    kept = {path: path.read_bytes() for path in model.iterdir()}
    for name in ("model.safetensors", "hyperparams.yaml", "merge.json"):
        path = model / name
        path.write_bytes(kept[path] + b"\n")
        refused(
            capsys,
            verify,
            f"is not what was signed: Hash mismatch for '{name}'",
        )
        path.unlink()
        refused(capsys, verify, f"Missing files in model 'model': {name}")
        path.write_bytes(kept[path])
        assert run(verify) == 0
    for name in ("custom.py", ".gitattributes"):
        (model / name).write_text("print(1)")
        refused(capsys, verify, f"Extra files found in model 'model': {name}")
        (model / name).unlink()
    (model / "link").symlink_to("config.json")
    refused(capsys, verify, "model/link' because it is a symlink")
    (model / "link").unlink()
    assert run(verify) == 0


def test_an_export_without_a_key_changes_nothing(exported, capsys):
    model, line = exported
    before = {path: path.read_bytes() for path in model.iterdir()}
    refused(capsys, f"{line} --sign none.pem", "none.pem is not there")
    assert {path: path.read_bytes() for path in model.iterdir()} == before


def test_a_mark_that_is_a_folder(exported, capsys):
    """What is in it is covered by no signature."""
    folder, line = exported
    mark = folder / ".speechbrain_merge.json"
    mark.unlink()
    mark.mkdir()
    (mark / "more.py").touch()
    refused(capsys, f"verify {folder} --key key.pub", "is a folder")


def test_a_mark_that_was_changed(exported, capsys, caplog):
    """It is not signed, and its damage is not passed over."""
    folder, line = exported
    mark = folder / ".speechbrain_merge.json"
    text = mark.read_text()
    for place, letter in enumerate(text):
        if letter.isdecimal() and place % 7 == 0:
            other = str((int(letter) + 1) % 10)
            mark.write_text(text[:place] + other + text[place + 1 :])
            caplog.clear()
            assert run(f"verify {folder} --key key.pub") == 0
            assert "is not as it was written" in caplog.text
            assert "The folder is not taken for ours" in caplog.text
    # one that its check belongs to, and the folder does not
    known = json.loads(text)
    known["files"]["config.json"]["size"] += 1
    del known["check"]
    mark.write_text(json.dumps(known))
    refused(capsys, f"verify {folder} --key key.pub", "config.json has the SHA")
    mark.write_text(text)
    assert run(f"verify {folder} --key key.pub") == 0
