"""Attention of one model merged into another's, across families.

Authors
 * The speechbrain_merge authors 2026
"""
