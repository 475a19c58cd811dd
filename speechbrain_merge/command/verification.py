"""``speechbrain-merge verify``: who signed a model, and what it goes back to.

The signature decides. What the model was merged from is shown with it; a file
that is at such a path now, with another content, changes nothing about the
model. ``inspect --verify`` is the command that fails there.

Authors
 * The speechbrain_merge authors 2026
"""

from speechbrain_merge.command.tables import print_table
from speechbrain_merge.lineage import check_lineage, record_at
from speechbrain_merge.records.signing import (
    Signer,
    signature_of,
    verify_signature,
)


def run(options):
    """Verifies a signature, and shows the chain of hashes where there is one."""
    verify_signature(
        options.path, options.key, options.certificate_chain, options.signature
    )
    by = options.key or ", ".join(options.certificate_chain)
    place = options.signature or signature_of(options.path)
    print(f"{options.path}: as signed ({place}, verified with {by})\n")
    if record_at(options.path) is not None:
        print_lineage(check_lineage(options.path))


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
    rows : list of Row
        What `check_lineage` gave.
    """
    print_table(
        ["model", "merged by", "SHA-256", "content"],
        [
            ["  " * row.depth + row.label, row.method, row.digest, row.state]
            for row in rows
        ],
    )
