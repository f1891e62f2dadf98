"""How all tests run: examples of hypothesis are the same at every run, unless `scripts/test --long` asks for fresh ones; and nothing of
the caller's shell changes what they see."""

import os
import signal

import pytest
from hypothesis import HealthCheck, settings

from tests.postgres import copies, own_postgres, postgres, postgres_url

__all__ = ["copies", "own_postgres", "postgres", "postgres_url"]

_SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]  # the machine may be busy; how long a test takes is nobody's business

settings.register_profile("same", derandomize=True, deadline=None, suppress_health_check=_SLOW)
settings.register_profile("fresh", deadline=None, suppress_health_check=_SLOW, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

#: A terminal that can show colours.
os.environ["TERM"] = "xterm-256color"

#: A shell that starts us in the background leaves Ctrl-C ignored, and what we start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """The caller has no say in anything that the product reads; who only hands tests out to others leaves them what they read."""
    if getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput"):
        return
    for name in [*os.environ]:
        if name.startswith("MINDGW_") or name in {"NO_COLOR", "FORCE_COLOR", "CLICOLOR_FORCE", "COLUMNS"}:
            del os.environ[name]
