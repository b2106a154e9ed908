"""What is about the machine: bf16, the compiler, signals, several processes' clock, its record."""

import logging
import os
import platform
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import torch


def use_bf16(precision: str, device: torch.device, compiles: bool = True) -> bool:
    """Whether the networks compute in bf16: where asked, or where the hardware does it itself.

    On a processor where they are compiled; else fp32 is faster there (benchmarks/README.md).
    """
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # a processor may be held to less than it has, by ATEN_CPU_CAPABILITY
    wide = torch.backends.cpu.get_cpu_capability() not in ("DEFAULT", "NO AVX", "AVX2")
    return device.type == "cpu" and compiles and wide and torch.cpu._is_avx512_bf16_supported()


def kind() -> str:
    """What trains here, as one of the words of `budget.MACHINES`."""
    if torch.cuda.is_available():
        return "gpu"
    if use_bf16("auto", torch.device("cpu")):
        return "bf16"
    return "fp32" if platform.machine().lower() in ("x86_64", "amd64") else "other"


def cpu_only() -> bool:
    """Whether to keep to the CPU: where there is no CUDA GPU. Apple's is untried; it is taken
    when $ACCELERATE_USE_CPU is false.

    Told so, Accelerate also sees the processes that torchrun starts on a CPU.
    """
    return not torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU") != "false"


def can_compile() -> bool:
    """Whether there is a C++ compiler for torch.compile."""
    from torch._inductor import cpp_builder

    try:
        cpp_builder.get_cpp_compiler()
    except Exception:  # inductor has no public name for "there is no compiler"
        return False
    return True


def compiled(function):
    """`function` through torch.compile, or as it is where there is no C++ compiler."""
    if not can_compile():
        return function
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # CUDA on a CPU machine
    torch.compiler.reset()  # it keeps eight versions of a function, and a notebook may ask for more
    return torch.compile(function, dynamic=False)


@contextmanager
def noted_signals(active: bool, several: bool = False) -> Iterator[SimpleNamespace]:
    """Where active, Ctrl-C and SIGTERM are noted as `.number`; the second one ends the process.

    Of `several` processes it does not: who started them passes the first one on once more. Not in
    a thread, which Python lets catch no signals.
    """
    noted = SimpleNamespace(number=0)

    def note(number: int, _) -> None:
        noted.number = number
        if several:
            return
        signal.signal(number, signal.SIG_DFL)
        with suppress(OSError):  # print may be at work when a signal comes
            os.write(2, b"\nstopping after this step (once more: at once)\n")

    active = active and threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM) if active else ()
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def shared(number: float, device: torch.device, highest: bool = False) -> float:
    """The first process's number, or the highest of all, in all of them."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return number
    found = torch.tensor(number, dtype=torch.float64, device=device)
    if highest:
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
    else:
        torch.distributed.broadcast(found, 0)
    return found.item()


def environment(device: torch.device) -> dict:
    """Versions and hardware, for the record."""
    cpuinfo = Path("/proc/cpuinfo")
    names = [
        line.split(":")[1].strip()
        for line in (cpuinfo.read_text().splitlines() if cpuinfo.exists() else [])
        if line.startswith("model name")
    ]
    processor = names[0] if names else platform.processor() or platform.machine()
    if device.type == "cuda":
        processor = torch.cuda.get_device_name(device)
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "processor": processor,
        "threads": torch.get_num_threads(),
    }
