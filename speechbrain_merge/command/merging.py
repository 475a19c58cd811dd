"""``speechbrain-merge merge``: by one method, or by a plan.

Authors
 * The speechbrain_merge authors 2026
"""

from pathlib import Path
from typing import Optional

from speechbrain_merge.adapters import merge_adapters
from speechbrain_merge.command.plan import Plan, parse_yaml, read_plan
from speechbrain_merge.command.plan_run import PlanRun
from speechbrain_merge.command.verification import given_signer
from speechbrain_merge.engine import provenance
from speechbrain_merge.methods import create
from speechbrain_merge.methods.devices import device_of
from speechbrain_merge.pool import read_pool
from speechbrain_merge.pool.manifest import Manifest
from speechbrain_merge.pool.run_folder import run_folders
from speechbrain_merge.weights.adapter_files import WEIGHTS

PLANS = (".yaml", ".yml")


# Options of merged models that merged adapters have not, and the other way round
OF_MODELS = ("include", "exclude", "otherwise", "dtype", "dry_run", "sign")
OF_ADAPTERS = ("rank", "alpha", "format")


def run(options) -> dict:
    """Merges by one method, or by a plan; models, or adapters."""
    if options.adapter is not None:
        return _merge_adapters(options)
    given = [f"--{name}" for name in OF_ADAPTERS if getattr(options, name)]
    if given:
        raise ValueError(
            f"{', '.join(given)} goes with adapters that are merged as such: "
            "give --adapter as well, or leave it out."
        )
    if options.method.endswith(PLANS):
        given = [
            f"--{name.replace('_', '-')}" if name != "experts" else "experts"
            for name in (
                "experts",
                "base",
                "output",
                "parameters",
                "include",
                "exclude",
                "otherwise",
                "different_bases",
                "dtype",
            )
            if getattr(options, name)
        ]
        if given:
            raise ValueError(
                f"{options.method} is a plan, which says all this itself: "
                f"leave out {', '.join(given)}."
            )
        plan = read_plan(options.method, options.anywhere)
    else:
        if options.output is None:
            raise ValueError("give --output, the .safetensors file to write.")
        if not options.experts:
            raise ValueError("give the experts to merge.")
        stage = {
            "method": options.method,
            "parameters": parse_yaml(
                options.parameters or "{}", "--parameters"
            ),
        }
        for name in (
            "experts",
            "base",
            "include",
            "exclude",
            "otherwise",
            "output",
            "different_bases",
            "dtype",
        ):
            stage[name] = getattr(options, name)
        plan = Plan({options.output: stage})
    signer = given_signer(options)
    if options.workers < 1:
        raise ValueError(f"--workers must be 1 or more, got {options.workers}.")
    device = device_of(options.device)
    if signer is not None:
        signer.check()
    run = PlanRun(plan)
    if options.dry_run:
        return {"stages": run.describe()}
    done = run.run(
        options.workers,
        progress=not options.quiet,
        signer=signer,
        device=device,
    )
    return {
        "stages": [
            {
                "stage": name,
                "state": state,
                "output": plan.stages[name].get("output"),
            }
            for name, state in done.items()
        ]
    }


def _merge_adapters(options):
    """Merges adapters into one adapter."""
    given = [
        f"--{name.replace('_', '-')}"
        for name in OF_MODELS
        if getattr(options, name)
    ]
    if given or options.method.endswith(PLANS):
        what = ", ".join(given) or f"the plan {options.method}"
        raise ValueError(f"--adapter does not go with {what}.")
    if options.output is None:
        raise ValueError(
            "give --output: a folder for PEFT, a .safetensors file for "
            "SpeechBrain."
        )
    parameters = parse_yaml(options.parameters or "{}", "--parameters")
    path = merge_adapters(
        create(options.method, **parameters),
        _adapters(options.experts),
        options.output,
        how=options.adapter,
        rank=options.rank,
        base=options.base,
        alpha=options.alpha,
        format=options.format,
        same_base=not options.different_bases,
        workers=options.workers,
        progress=not options.quiet,
        device=options.device,
    )
    made = {"stage": options.output, "state": "merged", "output": str(path)}
    return {"stages": [{**made, "left_out": left_out(path)}]}


def _adapters(sources):
    """The adapters, those of a pool in order."""
    found = []
    for source in sources:
        if run_folders(source) or (Path(source) / Manifest.FILE).is_file():
            found += read_pool(source)
        else:
            found.append(source)
    return found


def left_out(path) -> Optional[float]:
    """The share of what adapters change that a rank left out.

    Arguments
    ---------
    path : Path
        An adapter that was merged or extracted.

    Returns
    -------
    float or None
        In the Frobenius norm; None where nothing could be left out.
    """
    file = path / WEIGHTS if path.is_dir() else path
    return provenance(file)["parameters"]["error"]


def show(found):
    """Prints what was done, or would be."""
    for stage in found["stages"]:
        name, output = stage["stage"], stage["output"]
        if "experts" in stage:
            base = f", base {stage['base']}" if stage["base"] else ""
            print(
                f"{name} [{stage['state']}]: {stage['method']} of "
                f"{', '.join(stage['experts'])}{base} -> {output or 'unkept'}"
            )
        else:
            place = "" if output == name else f" ({output or 'not kept'})"
            share = stage.get("left_out")
            lost = "" if not share else f", {share:.3%} left out by the rank"
            print(f"{name}: {stage['state']}{place}{lost}")
