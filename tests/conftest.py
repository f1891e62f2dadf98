"""How all tests run: examples of hypothesis are the same at every run, unless `scripts/test --long` asks for fresh ones."""

import os

from hypothesis import HealthCheck, settings

_SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]  # the machine may be busy; how long a test takes is nobody's business

settings.register_profile("same", derandomize=True, deadline=None, suppress_health_check=_SLOW)
settings.register_profile("fresh", deadline=None, suppress_health_check=_SLOW, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))
