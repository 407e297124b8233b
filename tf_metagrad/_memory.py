"""Peak memory of one call, from what the machine has to tell.

| source        | where                                     | what it sees                                            |
|---------------|-------------------------------------------|---------------------------------------------------------|
| `"allocator"` | GPUs; CPUs with oneDNN, TensorFlow's      | buffers of tensors and of XLA; on a CPU, those of 256   |
|               | default on x86                            | KiB and more                                            |
| `"resident"`  | CPUs with `/proc`                         | growth of the process, sampled every 0.5 ms             |

Where a CPU has both, they are added: oneDNN's allocator never gives memory back, so after a first step resident memory
grows by what that allocator does not handle, small buffers and the scratch space of kernels. The sum is good to some
2 MiB; resident memory alone, where all buffers come from the system, swings by some 10 MiB from call to call.

The allocator's counter includes the rounding of its buffers, on a CPU up to a factor of two. A trace of its allocations
tells how much that was at the peak, and it is taken off.
"""

import contextlib
import ctypes
import os
import pathlib
import resource
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import tensorflow as tf

_STATM = "/proc/self/statm"
_INTERVAL = 5e-4  # seconds between two samples of the resident memory
_EVENTS = "MemoryAllocation", "MemoryDeallocation"
MIB = 2**20


def source(device: str) -> str | None:
    """Return what figures for the device, such as `"GPU:0"`, are made of: see the module; None where there are none."""
    return " + ".join(_parts(device)) or None


def peak_so_far_mib() -> float:
    """Return the largest memory in MiB since the process began: of the fullest GPU; without any, what was resident."""
    gpus = tf.config.list_logical_devices("GPU")
    if gpus:
        return max(tf.config.experimental.get_memory_info(f"GPU:{i}")["peak"] for i in range(len(gpus))) / MIB
    unit = 1 if sys.platform == "darwin" else 1024  # what getrusage counts in
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MIB


def peak_mib(call: Callable[[], Any], device: str, repeats: int = 1) -> float | None:
    """Return the growth of memory in MiB during a call, the median of some; None where it cannot be measured.

    Args:
        call: what is measured; it must have run before, so that nothing is traced or compiled.
        device: the device it runs on, `"CPU:0"` or `"GPU:0"`.
        repeats: the order in which operations run, and with it the peak, may differ from call to call.
    """
    parts = _parts(device).values()
    if not parts:
        return None
    return sum(statistics.median(part(call, device) for _ in range(repeats)) for part in parts) / MIB


def _parts(device: str) -> dict[str, Callable[[Callable, str], int]]:
    parts = {}
    with contextlib.suppress(ValueError, tf.errors.OpError):
        tf.config.experimental.get_memory_info(device)
        parts["allocator"] = _allocated
    if device.startswith("CPU") and os.path.exists(_STATM):
        parts["resident"] = _resident
    return parts


def _allocated(call: Callable[[], Any], device: str) -> int:
    """Return the growth that TensorFlow's allocator counts, less the rounding of its buffers."""
    events: list[tuple[bool, int, int, int]] = []
    with _traced(events) if device.startswith("CPU") else contextlib.nullcontext():
        before = tf.config.experimental.get_memory_info(device)["current"]
        tf.config.experimental.reset_memory_stats(device)
        call()
        peak = tf.config.experimental.get_memory_info(device)["peak"]
    return max(peak - before - rounding(events), 0)


def rounding(events: Iterable[tuple[bool, int, int, int]]) -> int:
    """Return by how many bytes buffers exceeded what was asked for, at the peak of a sequence of allocations.

    Args:
        events: `(whether it is an allocation, address, bytes of the buffer, bytes asked for)`, in order of time.
    """
    live: dict[int, tuple[int, int]] = {}
    taken = asked = peak_taken = peak_asked = 0
    for allocation, address, size, requested in events:
        if allocation:
            live[address] = size, requested
            taken, asked = taken + size, asked + requested
        elif address in live:
            size, requested = live.pop(address)
            taken, asked = taken - size, asked - requested
        peak_taken, peak_asked = max(peak_taken, taken), max(peak_asked, asked)
    return peak_taken - peak_asked


@contextlib.contextmanager
def _traced(events: list) -> Iterator[None]:
    """Append the allocations within the context; none where another profile is running or the trace is unreadable."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            from tensorflow.tsl.profiler.protobuf import xplane_pb2

            tf.profiler.experimental.start(folder, tf.profiler.experimental.ProfilerOptions(python_tracer_level=0))
        except (ImportError, tf.errors.OpError):
            xplane_pb2 = None
        try:
            yield
        finally:
            if xplane_pb2 is not None:
                tf.profiler.experimental.stop()
        for path in pathlib.Path(folder).rglob("*.xplane.pb") if xplane_pb2 else ():
            events += _allocations(xplane_pb2.XSpace.FromString(path.read_bytes()))


def _allocations(space: Any) -> list[tuple[bool, int, int, int]]:
    """Return the allocations of a profile, as `rounding` takes them."""
    found = []
    for plane in space.planes:
        kinds = {key: m.name for key, m in plane.event_metadata.items() if m.name in _EVENTS}
        names = {key: m.name for key, m in plane.stat_metadata.items()}
        for line in plane.lines:
            for event in line.events:
                if event.metadata_id in kinds:
                    values = {names[s.metadata_id]: getattr(s, s.WhichOneof("value")) for s in event.stats}
                    sizes = [int(values[key]) for key in ("addr", "allocation_bytes", "requested_bytes")]
                    when = line.timestamp_ns * 1000 + event.offset_ps
                    found.append((when, kinds[event.metadata_id] == _EVENTS[0], *sizes))
    return [event[1:] for event in sorted(found)]


def _resident(call: Callable[[], Any], device: str) -> int:
    """Return the growth of resident memory, after free memory was given back to the system."""
    with contextlib.suppress(AttributeError, OSError):  # glibc only
        ctypes.CDLL(None).malloc_trim(0)
    done, peaks = threading.Event(), []

    def sample():
        page, peak = os.sysconf("SC_PAGE_SIZE"), 0
        with open(_STATM, "rb", buffering=0) as file:
            while not done.is_set():
                peak = max(peak, int(os.pread(file.fileno(), 100, 0).split()[1]) * page)
                time.sleep(_INTERVAL)
        peaks.append(peak)

    before = int(pathlib.Path(_STATM).read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        call()
    finally:
        done.set()
        thread.join()
    return max(peaks[0] - before, 0)
