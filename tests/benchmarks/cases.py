"""What is timed: one merge in one fresh process, files in, one file out.

Run by ``merge_speed.py``, in the environment that has the tool:

    python cases.py CASE FOLDER EXPERTS OUTPUT

prints one line of JSON. Time and memory are counted from after the imports.
``MERGE_DEVICE`` in the environment is where those compute that can compute on a
GPU. Every case reads the same safetensors (SpeechBrain's averaging its own ``.ckpt``
files) and writes one safetensors file.
"""

import contextlib
import gc
import io
import json
import os
import sys
import threading
import time
from pathlib import Path

DENSITY, DROP, STEPS = 0.2, 0.5, int(os.environ.get("WUDI_STEPS", "20"))
WORKERS = os.cpu_count()
DEVICE = os.environ.get("MERGE_DEVICE", "cpu")
CASES = {}


def case(name):
    """A case: imports when called, and gives back what to time."""

    def decorator(function):
        CASES[name] = function
        return function

    return decorator


# --- the floor -----------------------------------------------------------


def _floor(with_base):
    def run(base, experts, output):
        sources = [base, *experts] if with_base else experts
        buffer = bytearray(1 << 20)
        for path in sources:
            with open(path, "rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass
        left = os.path.getsize(experts[0])
        with open(output, "wb", buffering=0) as file:
            while left > 0:
                left -= file.write(buffer[: min(left, len(buffer))])
            os.fsync(file.fileno())

    return run


@case("io")
def io_of_experts():
    """Reads the experts and writes as much as a model, synced."""
    return _floor(False)


@case("io+base")
def io_with_base():
    """The same, with the base read too."""
    return _floor(True)


# --- ours ----------------------------------------------------------------


def _ours(name, needs_base=True, hashed=False, **parameters):
    from speechbrain_merge.engine import merge
    from speechbrain_merge.methods import create

    method = create(name, **parameters)

    def run(base, experts, output):
        merge(
            method,
            experts,
            base=base if needs_base else None,
            output=output,
            workers=WORKERS,
            progress=False,
            hashes=["0" * 64] * len(experts) if hashed else None,
            device=DEVICE,
        )

    return run


@case("ours average")
def ours_average():
    """The plain mean."""
    return _ours("average", needs_base=False)


@case("ours average (hashes known)")
def ours_average_of_candidates():
    """The plain mean of candidates, whose hashes the pool knows."""
    return _ours("average", needs_base=False, hashed=True)


@case("ours ties")
def ours_ties():
    """TIES tensor by tensor, as mergekit and PEFT do."""
    return _ours("ties", density=DENSITY, scope="tensor")


@case("ours ties (model)")
def ours_ties_model():
    """TIES over the whole model, as the paper."""
    return _ours("ties", density=DENSITY)


@case("ours dare")
def ours_dare():
    """DARE, added up."""
    return _ours("dare", drop_rate=DROP, scale=0.2)


@case("ours tsv_m")
def ours_tsv_m():
    """TSV-M, of the embeddings too, as the peer does."""
    return _ours("tsv_m", exclude=())


@case("ours iso_c")
def ours_iso_c():
    """Iso-C, of the embeddings too, as the peer does."""
    return _ours("iso_c", exclude=())


@case("ours wudi")
def ours_wudi():
    """WUDI."""
    return _ours("wudi", steps=STEPS, exclude=())


# --- SpeechBrain ---------------------------------------------------------


@case("speechbrain average")
def speechbrain_average():
    """What SpeechBrain's recipes do, and its result saved."""
    from safetensors.torch import save_file

    from speechbrain.utils.checkpoints import Checkpoint, average_checkpoints

    def run(base, experts, output):
        checkpoints = [
            Checkpoint(path.parent, {}, {"model": path.with_suffix(".ckpt")})
            for path in map(Path, experts)
        ]
        save_file(average_checkpoints(checkpoints, "model"), output)

    return run


# --- mergekit ------------------------------------------------------------


def _mergekit(method, base_too=True, per_model=None, **parameters):
    from mergekit.graph import Executor
    from mergekit.options import MergeOptions
    from mergekit.scripts.merge_raw_pytorch import (
        RawPyTorchMergeConfig,
        plan_flat_merge,
    )

    def run(base, experts, output):
        config = {
            "merge_method": method,
            "models": [
                {"model": str(path), "parameters": per_model or {}}
                for path in experts
            ],
            "parameters": parameters,
            "dtype": None,
        }
        if base_too:
            config["base_model"] = str(base)
        folder = str(output) + ".folder"
        tasks = plan_flat_merge(
            RawPyTorchMergeConfig.model_validate(config),
            folder,
            False,
            False,
            MergeOptions(),
        )
        executor = Executor(tasks, math_device=DEVICE)  # as its --device
        for _ in executor.run(quiet=True):
            pass
        os.replace(Path(folder) / "model.safetensors", output)

    return run


@case("mergekit average")
def mergekit_average():
    """mergekit's linear."""
    return _mergekit("linear", False, {"weight": 1.0})


@case("mergekit ties")
def mergekit_ties():
    """mergekit's ties, equal weights."""
    return _mergekit("ties", True, {"weight": 1.0, "density": DENSITY})


@case("mergekit dare")
def mergekit_dare():
    """mergekit's dare_linear."""
    per_model = {"weight": 0.2, "density": 1 - DROP}
    return _mergekit("dare_linear", True, per_model)


# --- PEFT ----------------------------------------------------------------


def _tensorwise(function):
    """A function on task vectors of one tensor, over files."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    def run(base, experts, output):
        with contextlib.ExitStack() as stack:
            files = [
                stack.enter_context(safe_open(path, "pt"))
                for path in (base, *experts)
            ]
            merged = {}
            for name in files[0].keys():
                anchor = files[0].get_tensor(name)
                vectors = [
                    (file.get_tensor(name) - anchor).to(DEVICE)
                    for file in files[1:]
                ]
                one = torch.ones(1, device=DEVICE)
                merged[name] = anchor + function(vectors, one).cpu()
            save_file(merged, output)

    return run


@case("peft ties")
def peft_ties():
    """PEFT's ties on the task vectors of each tensor."""
    from peft.utils.merge_utils import ties

    return _tensorwise(
        lambda vectors, one: ties(
            vectors, one.repeat(len(vectors)), density=DENSITY
        )
    )


@case("peft dare")
def peft_dare():
    """PEFT's dare_linear."""
    from peft.utils.merge_utils import dare_linear

    return _tensorwise(
        lambda vectors, one: dare_linear(
            vectors, 0.2 * one.repeat(len(vectors)), density=1 - DROP
        )
    )


# --- FusionBench ---------------------------------------------------------


def _task_vectors(function):
    """A function on the task vectors of whole models, over files."""
    from safetensors.torch import load_file, save_file

    def run(base, experts, output):
        stored = load_file(base)
        # LAPACK has no float16
        anchor = {name: tensor.float() for name, tensor in stored.items()}
        vectors = []
        for path in experts:
            state = load_file(path)
            vectors.append({name: state[name] - anchor[name] for name in state})
        with contextlib.redirect_stdout(io.StringIO()):
            change = function(vectors)
        merged = {
            name: (anchor[name] + change[name].cpu())
            .detach()
            .to(stored[name].dtype)
            .contiguous()
            for name in anchor
        }
        save_file(merged, output)

    return run


@case("fusionbench ties (model)")
def fusionbench_ties():
    """FusionBench's copy of the authors' TIES."""
    import torch
    from fusion_bench.method.ties_merging.ties_merging_utils import (
        state_dict_to_vector,
        ties_merging,
        vector_to_state_dict,
    )

    def function(vectors):
        flat = torch.vstack([state_dict_to_vector(one) for one in vectors])
        flat = flat.to(DEVICE)
        merged = ties_merging(flat, reset_thresh=DENSITY, merge_func="dis-mean")
        return vector_to_state_dict(merged, vectors[0])

    return _task_vectors(function)


@case("fusionbench tsv_m")
def fusionbench_tsv_m():
    """FusionBench's TSV-M."""
    from fusion_bench.method.task_singular_vector.utils import TSVM_utils

    return _task_vectors(
        lambda vectors: TSVM_utils.compute_and_sum_svd_mem_reduction(
            vectors, accelerator=DEVICE
        )
    )


@case("fusionbench iso_c")
def fusionbench_iso_c():
    """FusionBench's Iso-C."""
    from fusion_bench.method.isotropic_merging.iso_utils import iso_c

    return _task_vectors(lambda vectors: iso_c(vectors, accelerator=DEVICE))


@case("fusionbench wudi")
def fusionbench_wudi():
    """FusionBench's WUDI, cut to as many steps as ours."""
    from fusion_bench.method.wudi.wudi import wudi_merging

    return _task_vectors(
        lambda vectors: wudi_merging(
            vectors, accelerator=DEVICE, iter_num=STEPS
        )
    )


# --- measuring -----------------------------------------------------------


def _status(field):
    """A field of /proc/self/status, in MB."""
    with open("/proc/self/status", encoding="ascii") as file:
        for line in file:
            if line.startswith(field):
                return int(line.split()[1]) / 1024
    raise KeyError(field)


def start_device():
    """Loads the GPU's libraries, which takes seconds once a process."""
    if DEVICE != "cpu":
        import torch

        some = torch.eye(64, dtype=torch.float64, device=DEVICE)
        torch.linalg.eigh(some @ some)
        torch.linalg.svd(some)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()


def device_peak():
    """The most memory of tensors on the GPU, in MB."""
    if DEVICE == "cpu":
        return 0.0
    import torch

    return torch.cuda.max_memory_allocated() / 2**20


def measure(run, *arguments):
    """Seconds, and the most memory above what there was before."""
    gc.collect()
    start_device()
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")  # the peak starts again from here
    before = {"rss": _status("VmRSS"), "anonymous": _status("RssAnon")}
    highest, done = [0.0], threading.Event()

    def watch():
        while not done.wait(0.005):
            highest[0] = max(highest[0], _status("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    started, worked = time.perf_counter(), time.process_time()
    try:
        run(*arguments)
    finally:
        seconds = time.perf_counter() - started
        worked = time.process_time() - worked
        done.set()
        watcher.join()
    return {
        "seconds": seconds,
        "processor": worked,
        "rss": _status("VmHWM") - before["rss"],
        "anonymous": highest[0] - before["anonymous"],
        "imports": before["rss"],
        "device": device_peak(),
    }


if __name__ == "__main__":
    title, folder, number, output = sys.argv[1:]
    prepared = CASES[title]()
    found = measure(
        prepared,
        Path(folder) / "base.safetensors",
        [
            Path(folder) / f"expert-{index}.safetensors"
            for index in range(1, int(number) + 1)
        ],
        Path(output),
    )
    print("\n" + json.dumps(found))
