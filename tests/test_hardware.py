"""What is taken of a machine unasked: nothing that it only emulates, nothing that is untried."""

import accelerate
import pytest
import torch

from vaelib import hardware, run
from vaelib.data import load
from vaelib.models import VAE
from vaelib.recipes import TrainConfig


@pytest.mark.parametrize("itself", [True, False])
def test_bf16_is_taken_where_the_hardware_computes_in_it(itself, monkeypatch):
    def supported(including_emulation: bool = True) -> bool:
        return itself or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: itself)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    for kind in ("cuda", "cpu"):
        assert hardware.use_bf16("auto", torch.device(kind)) is itself
        assert hardware.use_bf16("bf16", torch.device(kind))  # where it is asked for
        assert not hardware.use_bf16("fp32", torch.device(kind))
    assert not hardware.use_bf16("auto", torch.device("mps"))
    # uncompiled, a processor is faster in fp32
    assert hardware.use_bf16("auto", torch.device("cuda"), compiles=False) is itself
    assert not hardware.use_bf16("auto", torch.device("cpu"), compiles=False)
    assert hardware.use_bf16("bf16", torch.device("cpu"), compiles=False)


@pytest.mark.parametrize("held", ["AVX2", "DEFAULT", "NO AVX"])
def test_a_processor_held_to_less_has_no_bf16(held, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: held)
    assert not hardware.use_bf16("auto", torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for machine, kind in (("x86_64", "fp32"), ("AMD64", "fp32"), ("arm64", "other")):
        monkeypatch.setattr(hardware.platform, "machine", lambda machine=machine: machine)
        assert hardware.kind() == kind
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert hardware.kind() == "gpu"


@pytest.mark.parametrize(
    ("cuda", "asked", "cpu"),
    [(False, None, True), (False, "false", False), (False, "true", True), (True, None, False)],
)
def test_a_gpu_that_nobody_tried_is_taken_where_it_is_asked_for(cuda, asked, cpu, monkeypatch):
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    if asked:
        monkeypatch.setenv("ACCELERATE_USE_CPU", asked)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    assert hardware.cpu_only() is cpu
    # and Accelerate is told so
    told, real = [], accelerate.Accelerator

    def spy(**options):
        told.append(options["cpu"])
        return real(**options | {"cpu": True})

    monkeypatch.setattr(run, "Accelerator", spy)
    digits = {split: load("mnist-5k", split).subset(8) for split in ("train", "val")}
    run.Run(VAE(backbone="mlp", hidden=2), digits, TrainConfig(steps=1, batch_size=2))
    assert told == [cpu]
