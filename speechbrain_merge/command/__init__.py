"""The commands of ``speechbrain-merge``, a module each, and plans of merges.

A module has ``run(options)``, which does the work and gives what it found as
plain data, a dict, and ``show(found)``, which prints that in words. A dict may
have ``faults``, a sentence each: the command then fails, after its results are
printed. A module is loaded when its command is run, so that
``speechbrain-merge --help`` need not load PyTorch.

Authors
 * The speechbrain_merge authors 2026
"""
