"""Running out of memory: what is taken for it, and what it is turned into."""

import pytest
import torch

from tasks.core import memory
from tasks.core.errors import OutOfMemory, StageFailed

SHORT = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 79 GiB"),
    RuntimeError("CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to"),
    RuntimeError("unable to mmap 403511384 bytes from file <model.safetensors>: Cannot allocate memory (12)"),
    OSError(12, "Cannot allocate memory"),
    MemoryError(),
]
OTHERS = [
    RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    OSError(28, "No space left on device"),
    KeyError("out of memory"),
]


@pytest.mark.parametrize("error", SHORT)
def test_every_way_of_saying_it_becomes_one_error(error):
    said = r"^training ran out of memory \(.+\); use a smaller model$"
    with (
        pytest.raises(OutOfMemory, match=said) as caught,
        memory.told("training ran out of memory", "use a smaller model"),
    ):
        raise error
    assert caught.value.__cause__ is error
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [*OTHERS, OutOfMemory("out of memory; said"), StageFailed("out of memory")])
def test_other_errors_stay_what_they_are(error):
    with pytest.raises(type(error)) as caught, memory.told("training ran out of memory"):
        raise error
    assert caught.value is error


def test_the_reason_is_one_short_line():
    assert memory.reason(MemoryError()) == "MemoryError"
    assert memory.reason(RuntimeError("\n one \n two")) == "one"
    long = memory.reason(RuntimeError("word " * 100))
    assert len(long) <= memory.LONGEST
    assert long.endswith("word ...")
