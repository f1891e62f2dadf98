"""The files that `init` will render: the example settings are true, the systemd units are sound."""

import re
import shutil
import subprocess

import msgspec
import pytest

from mindgw import config, declaration
from mindgw.errors import ConfigError
from tests.house import ROOT

EXAMPLE = (ROOT / "templates/config.example.yaml").read_text()
UNITS = sorted((ROOT / "templates").glob("*.service"))
SYSTEMD = shutil.which("systemd-analyze")


def test_the_example_says_the_defaults():
    assert config.parse(EXAMPLE, "D", {}) == config.parse("", "D", {})


def test_the_example_with_everything_switched_on_is_valid():
    uncommented = re.sub(r"(?m)^( *)# ((?:public_url|tls_listen|listen): .*)$", r"\1\2", EXAMPLE)
    uncommented = re.sub(r"(?m)^database: sqlite\n", "", re.sub(r"(?m)^# (database: .*)$", r"\1", uncommented))
    read = config.parse(uncommented, "D", {"MINDGW_DB_PASSWORD": "secret"})
    assert read.public_url == "https://gpu.example.com:8443"
    assert read.tls_listen == "0.0.0.0:8443"
    assert read.metrics.listen == "127.0.0.1:9420"
    assert read.database == "postgresql://mindgw:secret@db.example.com/mindgw"


@pytest.mark.parametrize("place", ["dev", "staging", "production"])
def test_settings_for_a_kind_of_place_are_valid(place):
    text = (ROOT / f"templates/config.{place}.yaml").read_text()
    environ = {"MINDGW_DATABASE": "postgresql://mindgw:secret@db.example.com/mindgw"} if place == "production" else {}
    assert config.parse(text, "D", environ) != config.parse("", "D", {})


def test_settings_for_production_say_what_the_environment_lacks():
    with pytest.raises(ConfigError, match=r"database: the environment has no MINDGW_DATABASE"):
        config.parse((ROOT / "templates/config.production.yaml").read_text(), "D", {})


@pytest.mark.parametrize("place", ["dev", "staging", "production"])
def test_declarations_for_a_kind_of_place_are_valid(place):
    path = ROOT / f"templates/gateway.{place}.yaml"
    assert declaration.read(path.read_text(), {}, path.name).items


def keys(tree, prefix=""):
    for field in msgspec.structs.fields(tree):
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            yield from keys(field.type, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


@pytest.mark.parametrize("key", [key for key in keys(config.Config) if key != "data_dir"])
def test_the_example_names_every_setting(key):
    *sections, name = key.split(".")
    where = EXAMPLE
    for depth, section in enumerate(sections):
        where = re.search(rf"(?m)^{'  ' * depth}{section}:.*\n((?:{'  ' * (depth + 1)}.*\n)+)", where).group(1)
    assert re.search(rf"(?m)^ *(# )?{name}:", where)


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_units_are_sound_and_hardened(unit, tmp_path):
    """What systemd can say without running them. They were never run: no machine of ours has systemd as its first process."""
    if SYSTEMD is None:
        pytest.skip("not run: no systemd-analyze here")
    # the command of an installation that this machine does not have
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace("/usr/local/bin/mindgw", "/bin/true"))
    verified = subprocess.run([SYSTEMD, "verify", "--man=no", copy], capture_output=True, text=True, check=False)
    assert (verified.returncode, verified.stdout + verified.stderr) == (0, "")
    rated = subprocess.run([SYSTEMD, "security", "--offline=true", "--no-pager", copy], capture_output=True, text=True, check=False)
    exposure = re.search(r"Overall exposure level for \S+: ([0-9.]+)", rated.stdout)
    assert exposure, rated.stderr
    assert float(exposure.group(1)) < 2.0


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_units_give_a_drain_its_time(unit):
    stop = int(re.search(r"(?m)^TimeoutStopSec=(\d+)$", unit.read_text()).group(1))
    assert stop > config.Timeouts().drain
