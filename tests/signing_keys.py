"""Keys and certificates for tests of signatures, made anew each time."""

from datetime import datetime, timedelta, timezone
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

PEM = serialization.Encoding.PEM


def write_key(folder, name, curve=None, password=None):
    """A pair of keys as files.

    Returns
    -------
    private, public : Path
    """
    key = ec.generate_private_key(curve or ec.SECP256R1())
    hidden = (
        serialization.NoEncryption()
        if password is None
        else serialization.BestAvailableEncryption(password.encode())
    )
    private = Path(folder) / f"{name}.pem"
    private.write_bytes(
        key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, hidden)
    )
    public = Path(folder) / f"{name}.pub"
    public.write_bytes(
        key.public_key().public_bytes(
            PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return private, public


def write_certificate(folder, name, issuer=None, authority=True):
    """A certificate of the key of a name, issued by another name's."""
    folder = Path(folder)
    key, signing = (
        serialization.load_pem_private_key(
            (folder / f"{each}.pem").read_bytes(), None
        )
        for each in (name, issuer or name)
    )
    now = datetime.now(timezone.utc)
    names = [
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, each)])
        for each in (name, issuer or name)
    ]
    usage = dict.fromkeys(
        (
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(names[0])
        .issuer_name(names[1])
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=30))
        .add_extension(x509.BasicConstraints(authority, None), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=not authority,
                key_cert_sign=authority,
                crl_sign=authority,
                **usage,
            ),
            critical=True,
        )
        .sign(signing, hashes.SHA256())
    )
    path = folder / f"{name}.crt"
    path.write_bytes(certificate.public_bytes(PEM))
    return path
