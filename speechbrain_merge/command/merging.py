"""``speechbrain-merge merge``: by one method, or by a plan.

Authors
 * The speechbrain_merge authors 2026
"""

from speechbrain_merge.command.plan import Plan, parse_yaml, read_plan
from speechbrain_merge.command.plan_run import PlanRun
from speechbrain_merge.command.verification import given_signer

PLANS = (".yaml", ".yml")


def run(options) -> dict:
    """Merges by one method, or by a plan."""
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
    if signer is not None:
        signer.check()
    run = PlanRun(plan)
    if options.dry_run:
        return {"stages": run.describe()}
    done = run.run(options.workers, progress=not options.quiet, signer=signer)
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
            print(f"{name}: {stage['state']}{place}")
