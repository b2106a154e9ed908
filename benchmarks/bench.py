"""Measures what README.md here reports: `make bench`, or `make bench-full` for everything.

Every measurement is a process of its own, one at a time. Beside each stands the load that
other processes put on the cores meanwhile. Results are kept in results.json as they come.
"""

import argparse
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"

BUDGETS = {60: 3, 300: 3, 600: 1}  # seconds, and seeds
PEERS_UNTIL, PLAIN_UNTIL = 60, 300  # seconds: longer ones would take hours together
AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}


# -- what runs in a process of its own -----------------------------------------------------------


def typed(seconds: int, seed: int = 0, **more) -> dict:
    """The README's `vaelib train --data mnist --minutes M`, from the return key to its end.

    Its test -ELBO, the best on val, wall time, images seen and what it chose. `more` is typed
    besides.
    """
    import vaelib
    from vaelib import evaluation, files

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = ["train", "--data", "mnist", "--minutes", f"{seconds / 60:g}", "-e", name]
        for key, value in {"seed": seed, **more}.items():
            words += [f"--{key}", json.dumps(value) if isinstance(value, list) else str(value)]
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "vaelib", *words], check=True, stdout=sys.stderr)
        wall = time.perf_counter() - began
        recipe = files.read_recipe(folder)
        best = max(row["val_elbo"] for row in files.read_json(folder / files.HISTORY))
        chosen = (folder / files.LOG).read_text().splitlines()[0]
        model, digits = vaelib.load_checkpoint(name), vaelib.load("mnist", "test")
    nats = -evaluation.elbo_terms(model, digits)[0].elbo.mean().item()
    images = recipe["steps"] * recipe["batch_size"]
    return {"nats": nats, "val": -best, "wall": wall, "images": images, "chosen": chosen}


def other(script: str, seconds: int, seed: int = 0) -> dict:
    """The same of another program here, which trains until so many seconds after its start."""
    command = [sys.executable, str(HERE / script), str(seconds), str(seed)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def throughput(model: dict, plain: bool, images: int = 40_000) -> dict:
    """Images a second in training and in evaluation, the first batches aside."""
    import torch

    import vaelib
    from vaelib import evaluation

    torch.manual_seed(0)
    net, train = vaelib.VAE(**model), vaelib.load("mnist", "train")
    test = vaelib.load("mnist", "test")
    if plain:
        import baseline

        baseline.train(net, train.images, 2.0)
        began = time.perf_counter()
        seen = baseline.train(net, train.images, 15.0)
        training = seen / (time.perf_counter() - began)
        began = time.perf_counter()
        baseline.evaluate(net.eval(), test.images)
    else:
        steps = images // 128
        splits = {"train": train, "val": test.subset(100)}
        config = vaelib.TrainConfig(
            steps=4 * steps, eval_every=steps, batch_size=128, compile=kind() == "bf16"
        )
        history = vaelib.fit(net, splits, config)
        training = statistics.median(history.column("images_per_s")[1:])
        began = time.perf_counter()
        evaluation.elbo_terms(net, test)
    return {"train": training, "evaluate": len(test) / (time.perf_counter() - began)}


def peak(kind: str, precision: str) -> dict:
    """This machine's best: a matrix product or convolution in GFLOP/s, a copy in GB/s."""
    import torch
    from torch.utils.benchmark import Timer

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    if kind == "matrix":
        a, b = torch.randn(2048, 2048, dtype=dtype), torch.randn(2048, 2048, dtype=dtype)
        run, flop = "a @ b", 2 * 2048**3
    elif kind == "copy":
        a, b = torch.empty(2**26, dtype=dtype), torch.zeros(2**26, dtype=dtype)
        run, flop = "a.copy_(b)", 2 * a.nbytes  # read and written
    else:
        a = torch.randn(64, 128, 28, 28, dtype=dtype).to(memory_format=torch.channels_last)
        b = torch.nn.Conv2d(128, 128, 3, padding=1, bias=False).to(dtype=dtype)
        b = b.to(memory_format=torch.channels_last)
        run, flop = "b(a)", 2 * 64 * 28 * 28 * 128 * 128 * 9
    with torch.inference_mode():
        timer = Timer(run, globals={"a": a, "b": b}, num_threads=torch.get_num_threads())
        seconds = timer.blocked_autorange(min_run_time=3).median
    return {"rate": flop / seconds / 1e9}


def work(model: dict) -> dict:
    """What one image asks for at least: operations, and bytes to and from memory.

    Bytes: each layer's output is written and read once forward, and its gradient once
    backward, in two bytes a number; what is fused away makes it fewer, what is not in the
    caches makes it dear.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    import vaelib
    from vaelib.objectives import elbo

    net = vaelib.VAE(**model)
    numbers = []
    for module in net.modules():
        if not list(module.children()):
            module.register_forward_hook(
                lambda _, __, out: numbers.append(out.numel() if torch.is_tensor(out) else 0)
            )
    x, eps = torch.rand(1, 1, 28, 28).round(), torch.randn(1, net.latent_dim)
    with FlopCounterMode(display=False) as counter:
        elbo(net, x, eps).elbo.sum().backward()
    return {"mflop": counter.get_total_flops() / 1e6, "mb": 4 * 2 * sum(numbers) / 1e6}


def latency(name: str) -> dict:
    """Milliseconds of the small things, seconds of the large ones."""
    began = time.perf_counter()
    import vaelib

    found = {"import_s": time.perf_counter() - began}
    began = time.perf_counter()
    model = vaelib.load_checkpoint(name)
    import torch
    from torch.utils.benchmark import Timer

    from vaelib import evaluation, gallery, widgets

    with torch.inference_mode():
        widgets.picture(model, [0.0] * model.latent_dim)
        found["load_to_picture_s"] = time.perf_counter() - began
        x, z = torch.rand(1, 1, 28, 28).round(), torch.randn(1, model.latent_dim)
        for what in ("model.decode(z).mean", "model.encode(x)"):
            timer = Timer(what, globals=locals(), num_threads=torch.get_num_threads())
            key = what.split(".")[1].split("(")[0] + "_ms"
            found[key] = 1e3 * timer.blocked_autorange(min_run_time=2).median
        began = time.perf_counter()
        gallery.sample(model, name)._repr_png_()
        found["64_samples_figure_s"] = time.perf_counter() - began
        digits = vaelib.load("mnist", "test")
        began = time.perf_counter()
        evaluation.elbo_terms(model, digits)
        found["elbo_10000_s"] = time.perf_counter() - began
        x = evaluation.seen_by(model, digits.images[:240], torch.Generator().manual_seed(0))
        for key, bf16 in (("fp32", False), ("fast", evaluation.use_bf16("auto", x.device))):
            function = evaluation.decoded_log_weights
            if key == "fast":
                function = evaluation.compiled(function)
            with torch.autocast("cpu", torch.bfloat16, bf16):
                list(evaluation.bounds(model, x[:2].split(1), 500, function=function))
                began = time.perf_counter()
                list(evaluation.bounds(model, x.split(1), 500, function=function))
            million = 1e6 / (500 * len(x))
            found[f"bound_{key}_s_per_million"] = (time.perf_counter() - began) * million
    return found


def scaling(
    n_images: int = 4000, size: int = 28, channels: int = 1, batch_size: int = 64,
    steps: int | None = None, **model,
) -> dict:  # fmt: skip
    """Images a second and peak memory of `fit`, eager, on noise in a memory-mapped file."""
    import numpy as np
    import torch

    import vaelib

    shape = (channels, size, size)
    with tempfile.TemporaryFile() as file:
        noise, rest = np.random.default_rng(0), n_images
        while rest:
            part = min(rest, 2000)
            file.write(noise.integers(0, 256, (part, *shape), dtype=np.uint8).tobytes())
            rest -= part
        file.flush()
        array = torch.from_numpy(np.memmap(file, np.uint8, "c", shape=(n_images, *shape)))
        images = vaelib.data.Images("noise", "train", array)
        net = vaelib.VAE(image_shape=shape, **{"latent_dim": 32} | model)
        held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        mapped = psutil.Process().memory_info().shared / 1e6
        clock = {"steps": steps, "eval_every": steps // 4} if steps else {"minutes": 0.15}
        config = vaelib.TrainConfig(batch_size=batch_size, **clock)
        history = vaelib.fit(net, {"train": images, "val": images.subset(64)}, config)
        mapped = psutil.Process().memory_info().shared / 1e6 - mapped
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    speed = statistics.median(history.column("images_per_s")[1:])
    return {
        "images_per_s": speed, "memory_mb": memory, "before_mb": held, "mapped_mb": mapped
    }  # fmt: skip


def rendering(name: str, n: int = 20_000) -> dict:
    """Sprites drawn a second, five times anew; and seconds until the first one is there."""
    import torch

    from vaelib.data import sprites

    kinds = {"colour": "colour" in name, "smooth": "smooth" in name}
    began = time.perf_counter()
    sprites.at([0], **kinds)
    first = time.perf_counter() - began
    some = torch.randint(737_280, (n,), generator=torch.Generator().manual_seed(0))
    held, rates = [], []  # in memory of its own each time, which may be slow to come
    for _ in range(5):
        began = time.perf_counter()
        held.append(sprites.at(some, **kinds))
        rates.append(n / (time.perf_counter() - began))
    return {"first_s": first, "images_per_s": rates}


WORKERS = {
    f.__name__: f for f in (typed, other, throughput, peak, work, latency, scaling, rendering)
}


# -- what asks for it ----------------------------------------------------------------------------


def kind() -> str:
    """The kind of this processor, as vaelib sees it."""
    from vaelib import hardware

    return hardware.kind()


def measure(worker: str, processes: int = 1, **arguments) -> dict:
    """One worker's answer, with the load of everything else, in cores, and its wall time."""
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc_per_node={processes}"]
    command += [str(HERE / "bench.py"), "--worker", worker, json.dumps(arguments)]
    threads = str(max(1, len(os.sched_getaffinity(0)) // processes))
    environment = os.environ | {"OMP_NUM_THREADS": threads, "ACCELERATE_USE_CPU": "true"}
    busy, own, began = _busy(), _own(), time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    wall = time.perf_counter() - began
    if done.returncode:
        sys.exit(f"{worker} {arguments} failed:\n{done.stderr[-3000:]}")
    foreign = max(0.0, (_busy() - busy) - (_own() - own)) / wall
    answer = json.loads(done.stdout.splitlines()[-1])
    print(f"{worker} {arguments} -> {answer}, foreign load {foreign:.2f}", flush=True)
    return answer | {"foreign": round(foreign, 2)}


def _busy() -> float:
    times = psutil.cpu_times()
    return times.user + times.system + times.nice


def _own() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


MLP = {"backbone": "mlp", "hidden": 400, "latent_dim": 20}
LARGE = {"widths": (32, 64), "latent_dim": 50}


def nats_per_minute(full: bool) -> dict:
    """What is typed beside the plain loop and a peer: on this processor, and held to AVX2."""
    here = kind()
    kinds = {here: {}} | ({"fp32": AVX2} if here == "bf16" else {})
    who = {"plain": ("other", {"script": "baseline.py"}), "vaelib": ("typed", {})}
    if importlib.util.find_spec("pythae"):
        who["pythae"] = ("other", {"script": "peer.py"})
    found: dict[str, list[dict]] = {}
    for held, environment in kinds.items():
        for seconds, seeds in BUDGETS.items() if full else [(60, 3)]:
            for seed in range(seeds):
                # every run of ours has an empty cache of compiled code, but for the warm one
                with tempfile.TemporaryDirectory() as cache, changed(environment):
                    os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
                    for name, (worker, more) in who.items():
                        until = {"plain": PLAIN_UNTIL, "pythae": PEERS_UNTIL}
                        if seconds > until.get(name, seconds):
                            continue
                        run = measure(worker, seconds=seconds, seed=seed, **more)
                        found.setdefault(f"{held} {name} {seconds}", []).append(run)
                    ours, *later = found[f"{held} vaelib {seconds}"]
                    if "compile True" in ours["chosen"] and not later:
                        found[f"{held} warm {seconds}"] = [measure("typed", seconds=seconds)]
    return found


@contextmanager
def changed(environment: dict) -> Iterator[None]:
    """With these variables in the environment."""
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def rates(full: bool) -> dict:
    found = {
        f"{kind} {precision}": measure("peak", kind=kind, precision=precision)
        for kind in ("matrix", "convolution")
        for precision in ("fp32", "bf16")
    }
    found["copy"] = measure("peak", kind="copy", precision="fp32")
    wide = {"widths": (96, 192), "latent_dim": 50}
    for name, model in {"MLP 400": MLP, "32-64": LARGE, "96-192": wide}.items():
        runs, images = 3 if full else 1, 2_000 if name == "96-192" else 20_000
        found[name] = {"work": measure("work", model=model)}
        for plain in (True, False):
            if name != "96-192" or not plain:
                found[name]["plain" if plain else "vaelib"] = [
                    measure("throughput", model=model, plain=plain, images=images)
                    for _ in range(runs)
                ]
    return found


def scales(full: bool) -> dict:
    runs = {f"batch {b}": {"batch_size": b, **LARGE} for b in (16, 64, 256, 1024)}
    runs |= {f"widths {w}-{2 * w}": {"widths": (w, 2 * w)} for w in (16, 32, 64, 128)}
    faces = {"channels": 3, "widths": (32, 64, 128)}
    runs |= {f"size {s}": {"size": s, **faces} for s in (32, 64, 128)}
    runs |= {
        f"images {n:,}": {"size": 64, "n_images": n, **faces} for n in (2_000, 20_000, 202_599)
    }
    found = {name: measure("scaling", **run) for name, run in runs.items()}
    one = runs["batch 256"]
    steps = 4 * max(1, round(2 * found["batch 256"]["images_per_s"] / 256))  # eight seconds
    found["batch 256, 2 processes"] = measure("scaling", processes=2, steps=steps, **one)
    return found


def latencies(full: bool) -> dict:
    return {name: measure("latency", name=name) for name in ("mnist-2d", "mnist-50d")}


def sprites(full: bool) -> dict:
    names = ("sprites", "sprites-smooth", "sprites-colour")
    return {name: measure("rendering", name=name) for name in names}


SECTIONS = {
    "nats": nats_per_minute,
    "rates": rates,
    "latency": latencies,
    "scaling": scales,
    "sprites": sprites,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, []], help="default: all")
    parser.add_argument("--full", action="store_true", help="all budgets, sizes and repeats")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.worker:
        answer = WORKERS[chosen.worker[0]](**json.loads(chosen.worker[1]))
        if os.environ.get("RANK", "0") == "0":
            print(json.dumps(answer))
        return
    import report
    import torch

    from vaelib.hardware import environment

    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for section in chosen.sections or SECTIONS:
        made = environment(torch.device("cpu")) | {"date": time.strftime("%F"), "kind": kind()}
        parts = results.setdefault(section, {})  # by the kind of processor
        parts[made["kind"]] = {"made_with": made, "found": SECTIONS[section](chosen.full)}
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        report.write(results)


if __name__ == "__main__":
    main()
