"""``speechbrain-merge verify``: who signed a model, and what it goes back to.

The signature decides. What the model was merged from is shown with it; a file
that is at such a path now, with another content, changes nothing about the
model. ``inspect --verify`` is the command that fails there.

Authors
 * The speechbrain_merge authors 2026
"""

from dataclasses import asdict

from speechbrain_merge.command.tables import print_table
from speechbrain_merge.lineage import check_lineage, record_at
from speechbrain_merge.records.ownership import check_unchanged
from speechbrain_merge.records.signing import (
    Signer,
    signature_of,
    verify_signature,
)


def run(options) -> dict:
    """Verifies a signature; gives the lineage with it, where there is one."""
    verify_signature(
        options.path, options.key, options.certificate_chain, options.signature
    )
    # by its mark, which is not signed; the signature may lie elsewhere
    check_unchanged(options.path, but=[signature_of(options.path).name])
    rows = []
    if record_at(options.path) is not None:
        rows = check_lineage(options.path)
    return {
        "path": options.path,
        "signature": str(options.signature or signature_of(options.path)),
        "verified_with": options.key or ", ".join(options.certificate_chain),
        "lineage": [asdict(row) for row in rows],
    }


def show(found):
    """Prints what was verified, and the chain of hashes where there is one."""
    print(
        f"{found['path']}: as signed ({found['signature']}, verified with "
        f"{found['verified_with']})\n"
    )
    if found["lineage"]:
        print_lineage(found["lineage"])


def given_signer(options):
    """The signer that a command line asks for, or None.

    Arguments
    ---------
    options : argparse.Namespace
        With ``sign``, ``certificate`` and ``certificate_chain``.

    Returns
    -------
    Signer or None
    """
    if options.sign is not None:
        return Signer(
            options.sign, options.certificate, options.certificate_chain
        )
    if options.certificate is not None or options.certificate_chain:
        raise ValueError(
            "a certificate was given, and no --sign with its private key."
        )
    return None


def print_lineage(rows):
    """Prints a lineage.

    Arguments
    ---------
    rows : list of dict
        What `check_lineage` gave, as plain data.
    """
    print_table(
        ["model", "merged by", "hash", "content"],
        [
            [
                "  " * row["depth"] + row["label"],
                row["method"],
                row["digest"],
                row["state"],
            ]
            for row in rows
        ],
    )
