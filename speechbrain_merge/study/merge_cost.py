"""How long a merge takes, and how much memory, in a process of its own.

In a process that trains and decodes, neither can be measured. A study calls
this module with what to merge as JSON, and reads the last line that it prints:

> python -m speechbrain_merge.study.merge_cost '{"method": "average", "parameters": {}, \
>     "experts": ["a.safetensors", "b.safetensors"], "labels": ["a", "b"], \
>     "base": null, "output": "merged.safetensors"}'

Authors
 * The speechbrain_merge authors 2026
"""

import json
import os
import resource
import sys
import time

from speechbrain_merge.engine import merge
from speechbrain_merge.methods import create


def measure(what):
    """Measures time and memory of a merge; the merged file is removed.

    Arguments
    ---------
    what : dict
        See above.

    Returns
    -------
    dict
        ``merge_seconds`` from file to file, and ``peak_megabytes`` beyond what
        the process had after its imports: resident memory, in which the pages
        of files that are mapped count as well.
    """
    method = create(what["method"], **what["parameters"])
    imported = peak_megabytes()
    started = time.perf_counter()
    merge(
        method,
        what["experts"],
        what["base"],
        output=what["output"],
        labels=what["labels"],
        progress=False,
    )
    seconds = time.perf_counter() - started
    os.remove(what["output"])
    return {
        "merge_seconds": round(seconds, 2),
        "peak_megabytes": round(peak_megabytes() - imported),
    }


def peak_megabytes():
    """The most memory that this process has had so far.

    Where the system tells it of this program alone: ``getrusage`` would count
    the program that started this one, too.
    """
    status = "/proc/self/status"
    if os.path.exists(status):
        with open(status, encoding="ascii") as lines:
            for line in lines:
                if line.startswith("VmHWM"):
                    return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
