"""The commands of ``speechbrain-merge``, a module each, and plans of merges.

A module has ``run(options)``. It is loaded when its command is run, so that
``speechbrain-merge --help`` need not load PyTorch.

Authors
 * The speechbrain_merge authors 2026
"""
