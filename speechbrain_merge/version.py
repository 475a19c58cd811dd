"""The version of this package, in one place.

Authors
 * The speechbrain_merge authors 2026
"""

__version__ = "0.1.0"
