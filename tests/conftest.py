"""The same tests whoever runs them: nothing of the caller's shell, and no deadlines on a machine that others share."""

import os

import hypothesis

hypothesis.settings.register_profile("house", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("house")

#: A terminal that can show colours, and no say of the caller in anything that the product reads.
os.environ["TERM"] = "xterm-256color"
for name in [name for name in os.environ if name.startswith("MINDGW_") or name in {"NO_COLOR", "FORCE_COLOR", "CLICOLOR_FORCE", "COLUMNS"}]:
    del os.environ[name]
