"""The GPUs of this machine, as NVIDIA's driver tells of them. No driver, no library, no GPU: an empty list, never an error."""

import contextlib
import importlib
from collections.abc import Callable
from typing import Any

from mindgw_agent.wire import Gpu


def gpus() -> list[Gpu]:
    """What each GPU has and does now. Takes some milliseconds, up to a second the first time; blocks."""
    try:
        nvml: Any = importlib.import_module("pynvml")  # an optional extra
    except ImportError:
        return []
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return []
    try:
        return [_gpu(nvml, nvml.nvmlDeviceGetHandleByIndex(index)) for index in range(nvml.nvmlDeviceGetCount())]
    except nvml.NVMLError:
        return []
    finally:
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlShutdown()


def _gpu(nvml: Any, handle: Any) -> Gpu:
    name = nvml.nvmlDeviceGetName(handle)
    memory = _ask(nvml, lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
    load = _ask(nvml, lambda: nvml.nvmlDeviceGetUtilizationRates(handle))
    heat = _ask(nvml, lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
    return Gpu(
        name.decode() if isinstance(name, bytes) else name,
        memory_total=memory.total if memory else 0,
        memory_used=memory.used if memory else 0,
        utilisation=load.gpu / 100 if load else 0.0,
        temperature=float(heat or 0),
    )


def _ask(nvml: Any, question: Callable[[], Any]) -> Any:
    """One number of many; None on the devices that do not know it (parts of a GPU have no utilisation of their own)."""
    try:
        return question()
    except nvml.NVMLError:
        return None
