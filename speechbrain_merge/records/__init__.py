"""What is kept of work that was done: the ground floor of everything resumable.

Authors
 * The speechbrain_merge authors 2026
"""
