"""``speechbrain-merge extract``: a LoRA adapter of a fine-tuned model.

Authors
 * The speechbrain_merge authors 2026
"""

from speechbrain_merge.adapters import extract_lora
from speechbrain_merge.command.merging import left_out


def run(options) -> dict:
    """Extracts the adapter."""
    form = options.format
    if form is None:
        is_file = options.output.endswith(".safetensors")
        form = "speechbrain" if is_file else "peft"
    path = extract_lora(
        options.expert,
        options.base,
        options.output,
        options.rank,
        format=form,
        leave_out=options.leave_out,
        same_base=not options.different_bases,
        workers=options.workers,
        progress=not options.quiet,
    )
    return {
        "output": str(path),
        "format": form,
        "rank": options.rank,
        "left_out": left_out(path),
    }


def show(found):
    """Prints what was made."""
    print(
        f"{found['output']}: an adapter of rank {found['rank']} "
        f"({found['format']}), {found['left_out']:.3%} of the linear layers' "
        "change left out"
    )
