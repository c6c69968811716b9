"""What a piece of work costs, counted: the bytes that operators move, and how far memory rises.

Bytes moved, by one rule: every operator of torch that is called, in forward or backward, reads each element of its tensor
inputs once and writes each element of its outputs once; nothing stays in a cache between two operators. An expanded
dimension is read once. Views and uninitialised allocations are free. An operator in place reads and writes its target;
copy_, fill_ and zero_ only write it, and so does an out= argument. embedding_bag (W0 h on a CPU) does not read its whole
input once but gathers one row of C numbers for each of the N k entries of W0: N k C numbers, besides the entries and their
indices.
"""

import ctypes
import resource
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


def tensors_in(value) -> Iterator[Tensor]:
    """The tensors in an operator's argument or result."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from tensors_in(entry)


def storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def distinct_bytes(tensor: Tensor) -> int:
    """Bytes of the elements of a tensor, those of an expanded dimension once."""
    count = tensor.element_size()
    for size, stride in zip(tensor.shape, tensor.stride()):
        count *= size if stride or not size else 1
    return count


class BytesMoved(TorchDispatchMode):
    """Within this context: `by_operator`, the bytes that each operator has read and written, by the rule at the top of this file."""

    NEVER_READ = {"copy_", "fill_", "zero_"}  # of their first argument

    def __init__(self):
        super().__init__()
        self.by_operator: Counter[str] = Counter()

    @property
    def total(self) -> int:
        return self.by_operator.total()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        name = function._schema.name.removeprefix("aten::")
        declared = function._schema.arguments
        given = dict(zip((argument.name for argument in declared), args)) | kwargs
        into = {argument.name for argument in declared if argument.alias_info and argument.alias_info.is_write}
        read, inputs = 0, set()
        for argument in declared:
            only_written = argument.is_out or (argument.name in into and name in self.NEVER_READ)
            for tensor in tensors_in(given.get(argument.name)):
                inputs.add(storage(tensor))
                if not only_written:
                    read += distinct_bytes(tensor)
        outputs = list(tensors_in(result))
        # Some views (_unsafe_view) do not call themselves one.
        is_view = not into and any(tensor.numel() and storage(tensor) in inputs for tensor in outputs)
        if is_view or name.startswith(("empty", "new_empty")):
            return result
        if name.startswith("_embedding_bag"):
            table, indices = args[:2]
            read += indices.numel() * table.shape[1] * table.element_size() - distinct_bytes(table)
        written = sum(map(distinct_bytes, outputs))
        self.by_operator[name] += read + written
        return result


def _resident(name: str) -> int:
    """A field of /proc/self/status in bytes: VmRSS, the resident set, or VmHWM, the highest it has been."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def peak_growth(step: Callable[[], object], device: torch.device) -> int:
    """By how many bytes the memory in use rises during a step above what it was before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with suppress(OSError, AttributeError):  # glibc: what is free in its heap goes back to the system
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM becomes VmRSS
        before = _resident("VmRSS")
        step()
        return _resident("VmHWM") - before
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        step()
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit
