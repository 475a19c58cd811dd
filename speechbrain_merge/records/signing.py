"""Signatures: who made a file or a folder, and that it is what they made.

Hashes find damage. They do not show who wrote a file: whoever can change it can
change its record as well. A signature can only be made with a private key, and
anyone can check it with the public one, so that a merged model may come by any
way. Signatures are those of OpenSSF Model Signing (the package
``model-signing``): a Sigstore bundle with the SHA-256 of each file, which its
own command checks, too. Keys are of elliptic curves, in files, and nothing is
sent anywhere::

    openssl ecparam -name prime256v1 -genkey -noout -out key.pem
    openssl ec -in key.pem -pubout -out key.pub
    speechbrain-merge merge average a.safetensors b.safetensors \\
        -o m.safetensors --sign key.pem
    speechbrain-merge verify m.safetensors --key key.pub

The signature of a file is beside it (``m.safetensors.sig``), that of a folder in
it (``model.sig``). It covers every file of a folder but itself and the mark by
which this package knows its own folders, which is written last.

The package is optional: ``pip install 'speechbrain_merge[sign]'``, on Python 3.10
and later.

Example
-------
>>> from cryptography.hazmat.primitives import serialization as form
>>> from cryptography.hazmat.primitives.asymmetric import ec
>>> folder = getfixture("tmp_path")
>>> private, public = folder / "key.pem", folder / "key.pub"
>>> key = ec.generate_private_key(ec.SECP256R1())
>>> pem, plain = form.Encoding.PEM, form.PrivateFormat.PKCS8
>>> _ = private.write_bytes(key.private_bytes(pem, plain, form.NoEncryption()))
>>> usual = form.PublicFormat.SubjectPublicKeyInfo
>>> _ = public.write_bytes(key.public_key().public_bytes(pem, usual))
>>> _ = (folder / "m.safetensors").write_bytes(b"weights")
>>> Signer(private).sign(folder / "m.safetensors").name
'm.safetensors.sig'
>>> verify_signature(folder / "m.safetensors", key=public)
>>> _ = (folder / "m.safetensors").write_bytes(b"other weights")
>>> verify_signature(folder / "m.safetensors", key=public)
Traceback (most recent call last):
...
speechbrain_merge.records.signing.WrongSignature: .../m.safetensors is not what was signed: Hash mismatch for '.': ...

Authors
 * The speechbrain_merge authors 2026
"""

import ast
import importlib
import os
import re
import tempfile
from collections.abc import Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Optional, Union

from speechbrain_merge.records.errors import RecordError
from speechbrain_merge.records.files import write_whole
from speechbrain_merge.records.ownership import MARK, note_file
from speechbrain_merge.records.paths import LONGEST_NAME
from speechbrain_merge.records.reading import read_bytes, read_json

SUFFIX = ".sig"
"""Ends the name of a file's signature."""

FOLDER_SIGNATURE = "model.sig"
"""The signature in a folder."""

PASSWORD = "SPEECHBRAIN_MERGE_KEY_PASSWORD"
"""The environment variable with the password of an encrypted key."""

_LIMIT = 16 << 20
_KEY_LIMIT = 1 << 20
_BUNDLE = "application/vnd.dev.sigstore.bundle"
_MISMATCH = "Signature mismatch: "
_DIGEST = re.compile(r"'Digest\(algorithm='\w+', digest_value=(.+?)\)'(?=,|$)")

PathLike = Union[str, os.PathLike]


class WrongSignature(ValueError):
    """A signature is missing, is none, or is of something or someone else."""


class Signer:
    """Signs files and folders with a private key.

    Arguments
    ---------
    key : str or Path
        The private key, of an elliptic curve (P-256, P-384 or P-521), as PEM.
        Where it is encrypted, its password is in the environment variable
        ``SPEECHBRAIN_MERGE_KEY_PASSWORD``.
    certificate : str or Path, optional
        The certificate of the key, as PEM. The signature is then checked
        against those who issued it, and not against one key.
    certificate_chain : list of str or Path
        The certificates between that and the root, the root's at the end.

    Example
    -------
    >>> Signer("none.pem").check()
    Traceback (most recent call last):
    ...
    FileNotFoundError: the private key none.pem is not there
    """

    def __init__(
        self,
        key: PathLike,
        certificate: Optional[PathLike] = None,
        certificate_chain: Iterable[PathLike] = (),
    ):
        self.key = Path(key)
        self.certificate = None if certificate is None else Path(certificate)
        self.certificate_chain = [Path(each) for each in certificate_chain]
        if self.certificate_chain and self.certificate is None:
            raise ValueError(
                "a certificate chain was given to sign with, and no "
                "certificate of the key: give that, too."
            )

    def check(self, path: Optional[PathLike] = None):
        """Raises what would prevent signing, before there is work to lose.

        Arguments
        ---------
        path : str or Path, optional
            The file that is to be signed; it need not be there yet.

        Raises
        ------
        FileNotFoundError
            Where there is no such key or certificate.
        FileExistsError
            Where something that is no signature is in the signature's place.
        ValueError
            Where they cannot be used, ``model-signing`` is not installed, or
            the name of the file leaves no room for that of its signature.
        """
        self._configuration()
        if path is not None:
            _check_place(signature_of(path))

    def sign(self, path: PathLike) -> Path:
        """Signs a file or a folder.

        Arguments
        ---------
        path : str or Path
            What to sign. An earlier signature is replaced, nothing else.

        Returns
        -------
        Path
            The signature.

        Raises
        ------
        FileNotFoundError
            Where there is nothing to sign, no key or no certificate.
        FileExistsError
            Where something that is no signature is in the signature's place.
        ValueError
            Where they cannot be used, ``model-signing`` is not installed, or
            there are links in the folder, which would not be covered.
        """
        path = Path(path)
        configuration = self._configuration()
        _there(path, "what is to be signed,")
        _check_place(signature_of(path))
        configuration.set_hashing_config(_hashing(path))
        with tempfile.TemporaryDirectory() as folder:
            signed = Path(folder) / FOLDER_SIGNATURE
            with _told(f"{path} cannot be signed"):
                configuration.sign(_real(path), signed)
            content = signed.read_bytes()
        signature = signature_of(path)
        write_whole(signature, content)
        if path.is_dir():
            note_file(path, FOLDER_SIGNATURE)
        return signature

    def _configuration(self):
        signing = _library("signing")
        _readable(self.key, "the private key")
        configuration = signing.Config()
        if self.certificate is None:
            password = os.environ.get(PASSWORD)
            with _told(
                f"{self.key} cannot be used to sign: expected a private key of "
                "the elliptic curve P-256, P-384 or P-521 as PEM, with its "
                f"password, if it has one, in {PASSWORD}"
            ):
                return configuration.use_elliptic_key_signer(
                    private_key=self.key,
                    password=None if password is None else password.encode(),
                )
        for each in (self.certificate, *self.certificate_chain):
            _readable(each, "the certificate")
        with _told(
            f"{self.key} cannot be used to sign with the certificate "
            f"{self.certificate}: expected an unencrypted private key of the "
            "elliptic curve P-256, P-384 or P-521, and its certificate, as PEM"
        ):
            return configuration.use_certificate_signer(
                private_key=self.key,
                signing_certificate=self.certificate,
                # The library takes no empty chain; twice there does no harm
                certificate_chain=self.certificate_chain or [self.certificate],
            )


def signer_of(value: Any) -> Optional[Signer]:
    """What a setting ``sign`` stands for.

    Arguments
    ---------
    value : Signer, str, Path or None
        A signer, or the private key alone.

    Returns
    -------
    Signer or None
    """
    if value is None or isinstance(value, Signer):
        return value
    if isinstance(value, (str, os.PathLike)):
        return Signer(value)
    raise ValueError(
        "`sign` must be the file of a private key or a Signer, got "
        f"{type(value).__name__}."
    )


def signature_of(path: PathLike) -> Path:
    """Where the signature of a file or folder is.

    Arguments
    ---------
    path : str or Path
        The file or folder.

    Returns
    -------
    Path
    """
    path = Path(path)
    if path.is_dir():
        return path / FOLDER_SIGNATURE
    return path.with_name(path.name + SUFFIX)


def verify_signature(
    path: PathLike,
    key: Optional[PathLike] = None,
    certificate_chain: Iterable[PathLike] = (),
    signature: Optional[PathLike] = None,
):
    """Refuses a file or folder that is not as someone signed it.

    Arguments
    ---------
    path : str or Path
        The file or folder.
    key : str or Path, optional
        The public key, as PEM.
    certificate_chain : list of str or Path
        Instead of a key: the certificates that are trusted, the root's among
        them, for signatures that were made with a certificate.
    signature : str or Path, optional
        The signature, where it is not at its place.

    Raises
    ------
    WrongSignature
        Where there is none, it is damaged, it is not of this key, or what was
        signed is something else: another content, a file more or less.
    ValueError
        Where the key cannot be used, or ``model-signing`` is not installed.
    """
    path, certificates = Path(path), [Path(each) for each in certificate_chain]
    if (key is None) == (not certificates):
        raise ValueError(
            "give the public key that the signature was made with, or the "
            "certificates that you trust: one of the two."
        )
    configuration = _library("verifying").Config()
    _there(path, "what is to be verified,")
    if key is not None:
        _readable(Path(key), "the public key")
        with _told(
            f"{key} cannot be used to verify: expected a public key of the "
            "elliptic curve P-256, P-384 or P-521 as PEM"
        ):
            configuration.use_elliptic_key_verifier(public_key=Path(key))
    else:
        for each in certificates:
            _readable(each, "the certificate")
        with _told("the certificates cannot be used to verify"):
            configuration.use_certificate_verifier(
                certificate_chain=certificates
            )
    place = signature_of(path) if signature is None else Path(signature)
    try:
        # Bounded: the library reads whatever is there
        read_bytes(place, _LIMIT)
    except FileNotFoundError:
        raise WrongSignature(
            f"{path} has no signature: {place} is not there. Sign it by "
            "`--sign`, or say where the signature is."
        ) from None
    except RecordError as error:
        raise WrongSignature(str(error)) from None
    if (path / MARK).is_dir() and not (path / MARK).is_symlink():
        # The library would pass over all that is in it
        raise WrongSignature(
            f"{path} is not what was signed: {MARK} is a folder, and its "
            "content is covered by no signature"
        )
    own = signature_of(path)
    if path.is_dir() and own.resolve() != place.resolve():
        # Passed over as well, so that it may hold nothing else
        try:
            _check_place(own)
        except FileExistsError:
            raise WrongSignature(
                f"{path} is not what was signed: {own} is no signature, and "
                "is covered by none"
            ) from None
    configuration.set_hashing_config(_hashing(path, place))
    try:
        configuration.verify(_real(path), place)
    except Exception as error:
        raise WrongSignature(_why(error, path, place, key)) from error


def _check_place(place):
    """Refuses to replace what is no signature, such as a file of the user."""
    if len(os.fsencode(place.name)) > LONGEST_NAME:
        raise ValueError(
            f"{place} would be the signature, and its name is longer than the "
            f"{LONGEST_NAME} bytes that a file system allows. Choose a shorter "
            "name."
        )
    if not os.path.lexists(place):
        return
    found = None
    if place.is_file() and not place.is_symlink():
        try:
            found = read_json(place, _LIMIT)
        except RecordError:
            pass
    kind = found.get("mediaType") if isinstance(found, dict) else None
    if not isinstance(kind, str) or not kind.startswith(_BUNDLE):
        raise FileExistsError(
            f"{place} is in the place of the signature, and is none. Nothing "
            "was changed. Move it away, or choose another name."
        )


def _hashing(path, place=None):
    """All files of a folder but the signature, and the mark written last."""
    ignored = [FOLDER_SIGNATURE, MARK]
    if place is not None and path.resolve() in place.resolve().parents:
        ignored.append(str(place.resolve().relative_to(path.resolve())))
    hashing = _library("hashing").Config()
    return hashing.set_ignored_paths(paths=ignored, ignore_git_paths=False)


def _why(error, path, place, key):
    """What a failed verification means, in a sentence."""
    kind = f"{type(error).__module__}.{type(error).__name__}"
    words = " ".join(str(error).split()) or type(error).__name__
    if words.startswith(_MISMATCH):
        differences = ast.literal_eval(str(error).removeprefix(_MISMATCH))
        told = "; ".join(
            _DIGEST.sub(_hexadecimal, each) for each in differences
        )
        return f"{path} is not what was signed: {told[:1000]}"
    if words.startswith("Key mismatch"):
        return f"{place} was not made with the key of {key}"
    if "InvalidSignature" in kind:
        return (
            f"{place} is forged or damaged: its content does not fit its "
            "signature"
        )
    if "X509StoreContextError" in kind:
        return f"{place} was not made by anyone whom you trust: {words}"
    if isinstance(error, OSError) or words.startswith("Cannot use "):
        reason = words.partition(" This behavior")[0]
        return f"{path} cannot be verified: {reason}"
    return (
        f"{place} is no signature of this kind, or was made in another way "
        f"(with a key, with a certificate): {words[:200]}"
    )


def _hexadecimal(match):
    """A digest as `sha256sum` writes it."""
    try:
        return ast.literal_eval(match[1]).hex()
    except (ValueError, SyntaxError):
        return match[0]


def _library(name):
    """A module of ``model-signing``."""
    try:
        return importlib.import_module(f"model_signing.{name}")
    except ImportError as error:
        raise ValueError(
            "signatures need the package model-signing: install "
            f"'speechbrain_merge[sign]', on Python 3.10 or later ({error})."
        ) from error


@contextmanager
def _told(what):
    """Any error of the libraries as one that says what was expected."""
    try:
        yield
    except Exception as error:
        words = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{what}. ({words})") from error


def _there(path, what):
    if not path.exists():
        raise FileNotFoundError(f"{what} {path} is not there")


def _readable(path, what):
    """Refuses keys that are none before a library reads them to their end."""
    _there(path, what)
    try:
        read_bytes(path, _KEY_LIMIT)
    except (RecordError, OSError) as error:
        raise ValueError(f"{what} cannot be read: {error}") from None


def _real(path):
    """The path without a link at its end, which the library refuses."""
    return path.resolve() if path.is_symlink() else path
