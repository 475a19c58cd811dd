"""How time and memory of a merge grow, with the experts and with their size.

Merges synthetic experts of Whisper's shapes by ``average``, ``ties`` and
``tsv_m``, ours and other tools', each in a fresh process: so many experts of one
size, and two experts of every size. Draws seconds and the most memory above the
imports, against both. From the root of the checkout:

    python tests/benchmarks/growth.py --peers-python OTHER/bin/python \\
        --json growth.json --plot docs/images/growth.png

Each figure is stored as soon as it is there, and is not measured again. With
``--busy``, times are marked as measured beside other work (hollow circles;
memory is the same). A point is left out, and the reason stored, where the last
point of the line says that it would take longer than ``--seconds`` (ours:
``--our-seconds``), more memory than ``--gigabytes`` or more room on the disk than
``--disk``; a merge that does so against expectation is stopped. Models lie in the page cache. Those of different
sizes are in float16, so that three of the largest fit on a disk (FusionBench's
are widened in memory); the others are in float32.
"""

import argparse
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from merge_speed import PEERS, case_command, machine, versions  # noqa: E402
from whisper_shapes import make_models, whisper_shapes  # noqa: E402

# In the panel of a method: what is run, and what the line is called
LINES = {
    "average": {
        "ours average": "speechbrain_merge",
        "speechbrain average": "SpeechBrain",
        "mergekit average": "mergekit",
    },
    "ties": {
        "ours ties": "speechbrain_merge, per tensor",
        "mergekit ties": "mergekit, per tensor",
        "ours ties (model)": "speechbrain_merge, whole model",
        "fusionbench ties (model)": "FusionBench, whole model",
    },
    "tsv_m": {
        "ours tsv_m": "speechbrain_merge",
        "fusionbench tsv_m": "FusionBench",
    },
}
COLORS = {
    "speechbrain_merge": "#0b5394",
    "SpeechBrain": "#6aa84f",
    "mergekit": "#cc4125",
    "FusionBench": "#e69138",
}
EXPERTS = (2, 4, 8, 16, 32)
SIZES = ("tiny", "base", "small", "medium", "large-v3")


def main():
    """Reads the command line, measures what is not there, draws."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", required=True)
    parser.add_argument("--plot", default=None)
    parser.add_argument("--peers-python", default=None)
    parser.add_argument("--size", default="tiny", choices=SIZES)
    parser.add_argument("--experts", type=int, nargs="+", default=EXPERTS)
    parser.add_argument("--sizes", nargs="+", default=SIZES, choices=SIZES)
    parser.add_argument(
        "--files", type=int, default=16, help="experts of different content"
    )
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--our-seconds", type=float, default=540)
    parser.add_argument("--gigabytes", type=float, default=16)
    parser.add_argument("--disk", type=float, default=16)
    parser.add_argument("--folder", default=None)
    parser.add_argument("--busy", action="store_true")
    chosen = parser.parse_args()
    found = {"points": []}
    if Path(chosen.json).exists():
        found = json.loads(Path(chosen.json).read_text())
    limits = {
        name: getattr(chosen, name)
        for name in ("seconds", "our_seconds", "gigabytes", "disk")
    }
    found["points"] = [
        point
        for point in found["points"]
        if "skipped" not in point
        # tried, and stopped at these limits
        or ("stopped" in point and found["limits"] == limits)
    ]
    found |= {
        "machine": machine(),
        "versions": versions(chosen.peers_python),
        "limits": limits,
    }
    folder = Path(chosen.folder or tempfile.mkdtemp(prefix="growth-"))
    try:
        measure_all(chosen, folder, found)
    finally:
        if chosen.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    if chosen.plot:
        draw(found, chosen.size, chosen.plot)


def measure_all(chosen, folder, found):
    """All points that are not there, the smallest first."""
    import torch

    several = folder / "experts"
    for number in chosen.experts:
        measure_group(
            chosen,
            several,
            found,
            "experts",
            chosen.size,
            number,
            torch.float32,
        )
    shutil.rmtree(several, ignore_errors=True)
    for size in chosen.sizes:
        two = folder / size
        measure_group(chosen, two, found, "size", size, 2, torch.float16)
        shutil.rmtree(two, ignore_errors=True)


def measure_group(chosen, folder, found, axis, size, number, dtype):
    """One place on an axis: all tools, one after the other."""
    done = {
        (point["axis"], point["title"], point["size"], point["experts"])
        for point in found["points"]
    }
    for titles in LINES.values():
        for title in titles:
            if (axis, title, size, number) in done:
                continue
            point = {
                "axis": axis,
                "title": title,
                "size": size,
                "experts": number,
                "parameters": parameters(size),
                "busy": chosen.busy,
            }
            reason = too_much(chosen, found, point, dtype)
            if reason is None:
                make_models(
                    folder,
                    size,
                    number,
                    dtype,
                    title.startswith("speechbrain"),
                    chosen.files,
                )
                point |= measure(chosen, folder, title, number)
            else:
                point["skipped"] = reason
            found["points"].append(point)
            temporary = Path(chosen.json + ".partial")
            temporary.write_text(json.dumps(found, indent=1))
            temporary.replace(chosen.json)
            print(f"# {axis}: {size} x {number}, {title}: {shown(point)}")
            sys.stdout.flush()


def parameters(size):
    """How many numbers a model has."""
    return sum(math.prod(shape) for shape in whisper_shapes(size).values())


def too_much(chosen, found, point, dtype):
    """Why a point is left out, or None."""
    if point["title"].startswith(PEERS) and chosen.peers_python is None:
        return "needs --peers-python"
    copies = 2 if point["title"].startswith("speechbrain") else 1
    # and the base, and the result
    models = copies * min(chosen.files, point["experts"]) + 2
    room = models * point["parameters"] * dtype.itemsize / 1e9
    if room > chosen.disk:
        return f"{room:.0f} GB of files"
    before = [
        other
        for other in found["points"]
        if (other["axis"], other["title"]) == (point["axis"], point["title"])
        and work(other) < work(point)
    ]
    if not before:
        return None
    last = max(before, key=work)
    if "skipped" in last:
        return last["skipped"]
    grown = work(point) / work(last)
    if grown * last["seconds"] > allowed(chosen, point["title"]):
        return f"about {grown * last['seconds']:.0f} s expected"
    if grown * last["anonymous"] / 1024 > chosen.gigabytes:
        return f"about {grown * last['anonymous'] / 1024:.0f} GB expected"
    return None


def allowed(chosen, title):
    """The seconds that a merge may take."""
    return chosen.our_seconds if title.startswith("ours") else chosen.seconds


def work(point):
    """What the time of a merge is proportional to, at least."""
    return point["experts"] * point["parameters"]


def measure(chosen, folder, title, number):
    """One run, stopped where it takes more than it may."""
    python = sys.executable
    if title.startswith(PEERS):
        python = chosen.peers_python
    output = folder / "merged.safetensors"
    output.unlink(missing_ok=True)
    command, environment = case_command(python, title, folder, number, output)
    with (
        tempfile.TemporaryFile("w+") as said,
        tempfile.TemporaryFile("w+") as wrong,
    ):
        process = subprocess.Popen(
            command, stdout=said, stderr=wrong, env=environment
        )
        stopped = watch(process, allowed(chosen, title), chosen.gigabytes)
        output.unlink(missing_ok=True)
        shutil.rmtree(f"{output}.folder", ignore_errors=True)
        if process.returncode == -signal.SIGKILL and not stopped:
            stopped = "killed by the system"
        if stopped:
            return {"skipped": stopped, "stopped": True}
        if process.returncode != 0:
            wrong.seek(0)
            raise SystemExit(f"{title} failed:\n{wrong.read()[-2000:]}")
        said.seek(0)
        entry = json.loads(said.read().strip().splitlines()[-1])
    return {**entry, "load": os.getloadavg()[0]}


def watch(process, seconds, gigabytes):
    """Waits for a process; gives the reason why it was stopped, or None."""
    started = time.perf_counter()
    # imports are not counted, so there is half a minute for them
    while process.poll() is None:
        time.sleep(0.05)
        reason = None
        if anonymous(process.pid) > gigabytes * 2**30:
            reason = f"more than {gigabytes:.0f} GiB"
        if time.perf_counter() - started > seconds + 30:
            reason = f"more than {seconds:.0f} s"
        if reason:
            process.kill()
            process.wait()
            return reason
    return None


def anonymous(number):
    """Memory of a process that is no file's, in bytes."""
    try:
        text = Path(f"/proc/{number}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    for line in text.splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    return 0


def shown(point):
    """A point in words."""
    if "skipped" in point:
        return f"left out ({point['skipped']})"
    return f"{point['seconds']:.2f} s, {point['rss']:.0f} MB"


def draw(found, size, path):
    """Seconds and memory against experts and size, a column a method."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [
        (axis, value, label)
        for axis in ("experts", "size")
        # one place is no growth
        if len({p[axis] for p in found["points"] if p["axis"] == axis}) > 1
        for value, label in (
            ("seconds", "seconds"),
            ("rss", "peak memory above imports, MB"),
        )
    ]
    figure, axes = pyplot.subplots(
        len(rows), len(LINES), figsize=(11, 3.1 * len(rows)), sharey="row"
    )
    for column, (method, titles) in enumerate(LINES.items()):
        for row, (axis, value, label) in enumerate(rows):
            panel = axes[row][column]
            panel.set_xscale("log")
            panel.set_yscale("log")
            panel.grid(alpha=0.3)
            if axis == "experts":
                ticks, names = EXPERTS, EXPERTS
                panel.set_xlabel(f"experts of Whisper-{size}'s shapes, float32")
            else:
                ticks, names = [parameters(each) for each in SIZES], SIZES
                panel.set_xlabel("size of two experts, float16")
            panel.set_xlim(ticks[0] / 1.3, ticks[-1] * 1.3)
            panel.set_xticks(ticks, names, fontsize=7)
            panel.xaxis.minorticks_off()
            left_out = 0
            for title, name in titles.items():
                points = [
                    point
                    for point in found["points"]
                    if (point["axis"], point["title"]) == (axis, title)
                ]
                left_out += draw_line(panel, points, name, value, left_out)
            if column == 0:
                panel.set_ylabel(label)
            if row == 0:
                panel.set_title(
                    method, pad=8 + 11 * max(map(len, LINES.values()))
                )
                panel.legend(
                    fontsize=8,
                    loc="lower center",
                    bbox_to_anchor=(0.5, 1.0),
                    frameon=False,
                    labelspacing=0.2,
                )
    for row in axes:
        lowest, highest = row[0].get_ylim()
        row[0].set_ylim(lowest, 3 * highest)  # room for what was left out
        label_plainly(row[0])
    figure.text(
        0.01,
        0.004,
        "x: left out from there on, for the time, memory or room on the disk "
        "that it would take; hollow: measured beside other work",
        fontsize=8,
    )
    figure.tight_layout(rect=(0, 0.015, 1, 1))
    figure.savefig(path, dpi=110)


def draw_line(panel, points, name, value, above):
    """One tool's line, and a cross where it ends early; whether there is one."""
    points = sorted(points, key=work)
    across = "experts" if points[0]["axis"] == "experts" else "parameters"
    line = [point for point in points if "skipped" not in point]
    color = COLORS[name.partition(",")[0]]
    panel.plot(
        [point[across] for point in line],
        [point[value] for point in line],
        "o--" if "whole" in name else "o-",
        color=color,
        label=name,
        markersize=4,
    )
    busy = [point for point in line if point["busy"] and value == "seconds"]
    panel.plot(
        [point[across] for point in busy],
        [point[value] for point in busy],
        "o",
        color=color,
        markerfacecolor="white",
        markersize=4,
    )
    ended = [point for point in points if "skipped" in point][:1]
    for point in ended:
        reason = point["skipped"].replace("more than", ">")
        reason = reason.removeprefix("about ").removesuffix(" expected")
        panel.annotate(
            f"{reason} \N{MULTIPLICATION X}",
            (point[across], 0.97 - 0.075 * above),
            xycoords=("data", "axes fraction"),
            color=color,
            fontsize=7,
            horizontalalignment="right",
            verticalalignment="top",
        )
    return len(ended)


def label_plainly(panel):
    """Plain numbers on a logarithmic axis, between its powers of ten too."""
    from matplotlib import ticker

    panel.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 3)))
    panel.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    panel.yaxis.minorticks_off()


if __name__ == "__main__":
    main()
