"""How fast and how large: our merges beside those of other tools.

Makes synthetic experts of a Whisper's shapes and merges them, each merge in a
fresh process, tools in turn, several times over. Prints a Markdown table, and
writes JSON. From the root of the checkout:

    python tests/benchmarks/merge_speed.py --peers-python OTHER/bin/python

where OTHER has mergekit 0.1.5, fusion-bench 0.2.33 and peft 0.21.2 installed;
without it, the rows of those tools say so. Models are read from the page cache,
with ``--cold`` from the disk. A merge records the hashes of what went in; where a
pool knows them already they are not computed again ("hashes known").
``--shapes large-v3`` in short is ``--large``: Whisper-large-v3 in float16, only
ours, files deleted afterwards. With ``--device cuda`` all compute on a GPU that
can, ours on the CPU as well (``, CPU``); ``auto`` takes one where there is one. Where the disk has no room for all of them,
``--files 4`` makes the fifth expert another name of the first.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

# What is compared: ours first, whose output the others' are compared with.
GROUPS = {
    "average": [
        "io",
        "ours average",
        "ours average (hashes known)",
        "speechbrain average",
        "mergekit average",
    ],
    "ties": ["io+base", "ours ties", "mergekit ties", "peft ties"],
    "ties (model)": ["ours ties (model)", "fusionbench ties (model)"],
    "dare": ["ours dare", "mergekit dare", "peft dare"],
    "tsv_m": ["ours tsv_m", "fusionbench tsv_m"],
    "iso_c": ["ours iso_c", "fusionbench iso_c"],
    "wudi": ["ours wudi", "fusionbench wudi"],
}
PEERS = ("mergekit", "peft", "fusionbench")
ON_CPU = ", CPU"


def main():
    """Reads the command line, runs, reports."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default="base")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--experts", type=int, default=5)
    parser.add_argument(
        "--files", type=int, default=None, help="files of different content"
    )
    parser.add_argument("--groups", nargs="+", default=None)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peers-python", default=None)
    parser.add_argument("--wudi-steps", type=int, default=20)
    parser.add_argument("--folder", default=None)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument(
        "--device", default="cpu", choices=["cpu", "cuda", "auto"]
    )
    parser.add_argument("--json", default=None)
    parser.add_argument("--timeout", type=float, default=7200)
    chosen = parser.parse_args()
    if chosen.device != "cpu":
        import torch

        there = torch.cuda.is_available()
        if chosen.device == "cuda" and not there:
            parser.error("--device cuda: torch sees no GPU")
        chosen.device = "cuda" if there else "cpu"
    if chosen.large:
        chosen.shapes = "large-v3"
        chosen.groups = chosen.groups or ["average", "ties", "dare"]
    folder = Path(chosen.folder or tempfile.mkdtemp(prefix="merge-speed-"))
    try:
        results = run(chosen, folder)
    finally:
        if chosen.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    report = {
        "machine": machine(chosen.device),
        "versions": versions(chosen.peers_python),
        **vars(chosen),
        "results": results,
    }
    if chosen.json:
        Path(chosen.json).write_text(json.dumps(report, indent=2))
    print(table(report))


def run(chosen, folder):
    """All cases of all groups."""
    import torch
    from whisper_shapes import make_models

    dtype = torch.float16 if chosen.large else torch.float32
    groups = chosen.groups or list(GROUPS)
    make_models(
        folder,
        chosen.shapes,
        chosen.experts,
        dtype,
        not chosen.large,
        chosen.files,
        base=groups != ["average"],
    )
    results = {}
    for group in groups:
        titles = GROUPS[group]
        if chosen.large:
            titles = [t for t in titles if t.startswith(("io", "ours"))]
        if chosen.device != "cpu":
            # after each of ours, the same on the CPU
            titles = [
                name
                for title in titles
                for name in (title, title + ON_CPU)
                if name == title or title.startswith("ours")
            ]
        found = {title: {"runs": []} for title in titles}
        for repeat in range(chosen.repeats):
            for title in titles:
                run_case(chosen, folder, title, found[title])
        ours = next(title for title in titles if title.startswith("ours"))
        for title in titles:
            output = _output(folder, title)
            other = title.endswith(ON_CPU)
            other = other or not title.startswith(("io", "ours"))
            if output.exists() and other:
                found[title]["difference"] = difference(
                    _output(folder, ours), output
                )
        for title in titles:
            _output(folder, title).unlink(missing_ok=True)
        results[group] = found
        print(f"# {group}: done, load {os.getloadavg()[0]:.1f}", flush=True)
    return results


def run_case(chosen, folder, title, found):
    """One run of one case, in a process of its own."""
    python = sys.executable
    if title.startswith(PEERS):
        python = chosen.peers_python
        if python is None:
            found["skipped"] = "needs --peers-python"
            return
    if "skipped" in found:
        return
    output = _output(folder, title)
    output.unlink(missing_ok=True)
    if chosen.cold:
        forget(folder)
    started = time.perf_counter()
    command, environment = case_command(
        python, title, folder, chosen.experts, output
    )
    environment["WUDI_STEPS"] = str(chosen.wudi_steps)
    on_cpu = title.endswith(ON_CPU)
    environment["MERGE_DEVICE"] = "cpu" if on_cpu else chosen.device
    try:
        process = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=chosen.timeout,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        found["skipped"] = f"took more than {chosen.timeout:.0f} s"
        return
    finally:
        shutil.rmtree(f"{output}.folder", ignore_errors=True)
    if process.returncode != 0:
        found["skipped"] = process.stderr.strip().splitlines()[-1][:200]
        return
    entry = json.loads(process.stdout.strip().splitlines()[-1])
    entry["load"] = os.getloadavg()[0]
    found["runs"].append(entry)
    print(
        f"# {title}: {entry['seconds']:.2f} s of "
        f"{time.perf_counter() - started:.1f}",
        flush=True,
    )


def case_command(python, title, folder, experts, output):
    """How one case is run: its command line and environment."""
    ours = python == sys.executable
    environment = {
        **os.environ,
        "PYTHONPATH": str(HERE.parent.parent) if ours else "",
        "HF_HUB_OFFLINE": "1",
    }
    script = str(HERE / "cases.py")
    return [
        python,
        script,
        title.removesuffix(ON_CPU),
        str(folder),
        str(experts),
        str(output),
    ], environment


def forget(folder):
    """Drops the models from the page cache: they are read from the disk."""
    for path in Path(folder).iterdir():
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def difference(first, second):
    """The largest difference between two files of weights."""
    from safetensors import safe_open

    largest = 0.0
    with safe_open(first, "pt") as one, safe_open(second, "pt") as other:
        assert set(one.keys()) == set(other.keys())
        for name in one.keys():
            left = one.get_tensor(name).double()
            change = (left - other.get_tensor(name).double()).abs()
            largest = max(largest, float(change.max()))
    return largest


def table(report):
    """The results as Markdown."""
    lines = [
        f"{report['experts']} experts of Whisper-{report['shapes']}'s shapes, "
        f"{report['machine']}; median of {report['repeats']}; "
        f"files {'on the disk' if report['cold'] else 'in the page cache'}",
        "",
        "| merge | seconds (least–most) | times ours | processor seconds "
        "| peak RSS, MB | of it anonymous | peak of the GPU "
        "| largest difference from ours | load |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for found in report["results"].values():
        first = next(title for title in found if title.startswith("ours"))
        ours = [entry["seconds"] for entry in found[first]["runs"]]
        for title, case in found.items():
            if not case["runs"]:
                lines.append(
                    f"| {title} | {case.get('skipped')} | | | | | | | |"
                )
                continue
            times = [entry["seconds"] for entry in case["runs"]]
            middle = statistics.median(times)
            ratio = f"{middle / statistics.median(ours):.2f}" if ours else ""
            apart = case.get("difference")
            lines.append(
                f"| {title} | {middle:.2f} ({min(times):.2f}–{max(times):.2f}) "
                f"| {ratio} "
                f"| {statistics.median(e['processor'] for e in case['runs']):.2f} "
                f"| {max(e['rss'] for e in case['runs']):.0f} "
                f"| {max(e['anonymous'] for e in case['runs']):.0f} "
                f"| {max(e['device'] for e in case['runs']):.0f} "
                f"| {'' if apart is None else f'{apart:.1e}'} "
                f"| {max(e['load'] for e in case['runs']):.1f} |"
            )
    return "\n".join(lines)


def versions(peers_python):
    """Versions of ours, and of the peers in their environment."""
    found = {"torch": metadata.version("torch")}
    if peers_python is not None:
        code = (
            "import json, sys; from importlib.metadata import version; "
            "print(json.dumps({n: version(n) for n in sys.argv[1:]}))"
        )
        names = ["mergekit", "peft", "fusion-bench", "torch"]
        answer = subprocess.run(
            [peers_python, "-c", code, *names],
            capture_output=True,
            text=True,
            check=True,
        )
        found["peers"] = json.loads(answer.stdout)
    return found


def machine(device="cpu"):
    """Processor, cores, memory, and the GPU that is used."""
    name = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            name = line.split(":")[1].strip()
            break
    if device != "cpu":
        import torch

        name += f" beside {torch.cuda.get_device_name()}"
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return f"{os.cpu_count()} cores of {name}, {pages / 2**30:.0f} GiB"


def _output(folder, title):
    """Where a case writes."""
    return Path(folder) / f"out {title}.safetensors"


if __name__ == "__main__":
    main()
