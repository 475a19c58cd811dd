"""The error for weights that are not what was written down of them.

Authors
 * The speechbrain_merge authors 2026
"""


class ChangedContent(ValueError):
    """Weights, or what a file says of them, are not what was written."""
