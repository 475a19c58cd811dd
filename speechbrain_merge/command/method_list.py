"""``speechbrain-merge methods``: the methods there are, or one in full.

Authors
 * The speechbrain_merge authors 2026
"""

import inspect

from speechbrain_merge.command.tables import print_table
from speechbrain_merge.methods import available
from speechbrain_merge.methods.registry import find


def run(options):
    """Prints the methods, or one in full."""
    if options.name is not None:
        method = find(options.name)
        print(f"{options.name}{inspect.signature(method)}\n")
        print(inspect.getdoc(method))
        return
    rows = []
    for name in available():
        method = find(name)
        summary = (inspect.getdoc(method) or "").partition("\n")[0]
        rows.append([name, "base" if method.needs_base else "", summary])
    print_table(["method", "needs", ""], rows)
