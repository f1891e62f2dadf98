"""GPU facts where there is a library, a driver, a GPU, or none of them."""

import sys
import types

import pytest

from mindgw_agent import gpu
from mindgw_agent.wire import Gpu


class NVMLError(Exception):
    """What the FAKE library raises."""


def fake_nvml(devices: list[dict], *, driver: bool = True) -> types.ModuleType:
    """A FAKE pynvml: the library cannot be had on a machine without a GPU, its calls can."""

    def refuse(*_: object) -> None:
        raise NVMLError

    module = types.ModuleType("pynvml")
    calls = {
        "NVMLError": NVMLError,
        "NVML_TEMPERATURE_GPU": 0,
        "nvmlInit": (lambda: None) if driver else refuse,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: len(devices),
        "nvmlDeviceGetHandleByIndex": lambda index: devices[index],
        "nvmlDeviceGetName": lambda device: device["name"],
        "nvmlDeviceGetMemoryInfo": lambda device: types.SimpleNamespace(total=device["total"], used=device["used"]),
        "nvmlDeviceGetUtilizationRates": lambda device: types.SimpleNamespace(gpu=device["load"]) if "load" in device else refuse(),
        "nvmlDeviceGetTemperature": lambda device, sensor: device["heat"],
    }
    for name, call in calls.items():
        setattr(module, name, call)
    return module


def test_without_the_library_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpu.gpus() == []


def test_without_a_driver_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml([], driver=False))
    assert gpu.gpus() == []


def test_a_device_says_what_it_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = {"name": "H200", "total": 100, "used": 40, "load": 25, "heat": 51}
    part = {"name": b"H200 MIG", "total": 10, "used": 4, "heat": 50}
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml([whole, part]))
    assert gpu.gpus() == [Gpu("H200", 100, 40, 0.25, 51.0), Gpu("H200 MIG", 10, 4, 0.0, 50.0)]
