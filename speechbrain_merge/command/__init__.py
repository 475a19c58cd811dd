"""The parts of the command line: plans of merges, and comparisons.

Authors
 * The speechbrain_merge authors 2026
"""
