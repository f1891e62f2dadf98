"""Files for the operator's own machine, rendered from the templates that the package carries: `mindgw init --with systemd`."""

import shutil
import sys
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from urllib.parse import urlsplit

from mindgw import config
from mindgw.config import Config
from mindgw.errors import ConfigError
from mindgw_agent import private_files

#: Settings, and declarations for `mindgw config apply`, of three kinds of places.
_LIKE = tuple(f"{kind}.{place}.yaml" for kind in ("config", "gateway") for place in ("dev", "staging", "production"))

#: What may be asked for -> the files that it is made of.
SETS = {
    "nginx": ("nginx.conf",),
    "caddy": ("Caddyfile",),
    "systemd": ("mindgw.service", "mindgw-agent.service"),
    "config": ("config.example.yaml", *_LIKE),
}

#: Where the templates expect the data and the command; and what a site in front is called, and where it finds the server.
_DATA, _COMMAND = "/var/lib/mindgw", "/usr/local/bin/mindgw"
_SITE, _SERVER = "gw.example.com", "127.0.0.1:8420"
_SITES = frozenset({"nginx.conf", "Caddyfile"})


def source(name: str) -> Traversable:
    """A template: inside the wheel, or in the checkout when the package runs from there."""
    packaged = resources.files("mindgw") / "_templates" / name
    return packaged if packaged.is_file() else Path(__file__).parents[3] / "templates" / name


def command() -> str:
    """The `mindgw` of this installation."""
    beside = Path(sys.executable).with_name("mindgw")
    return str(beside) if beside.exists() else shutil.which("mindgw") or _COMMAND


def render(name: str, directory: Path, program: str) -> str:
    """The text of a template for this data directory and this command. The agent's own directory is another machine's: it stays."""
    text = source(name).read_text()
    if name in _SITES:
        return _site(text, config.load(None, directory))
    kept = f"{_DATA}-agent"
    return text.replace(kept, "\0").replace(_DATA, str(directory)).replace("\0", kept).replace(_COMMAND, program)


def _site(text: str, settings: Config) -> str:
    """A site in front of the server: its name, its port, and where the server is."""
    parts = urlsplit(settings.public_url or f"https://{_SITE}")
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname or _SITE
    text = text.replace(_SERVER, settings.listen)
    if parts.port:
        text = text.replace(":443", f":{parts.port}").replace("listen 443", f"listen {parts.port}")
    return text.replace(_SITE, host)


def check(wanted: list[str]) -> None:
    """Raises ConfigError when something is wanted that there is not."""
    unknown = [name for name in wanted if name not in SETS]
    if unknown:
        known = ", ".join(sorted(SETS))
        hint = "--help shows what it takes"
        raise ConfigError(f"command line: --with: there is no template {unknown[0]!r}: choose from {known}", hint=hint)


def write(wanted: list[str], directory: Path) -> list[Path]:
    """Writes the sets into `DIRECTORY/templates`, over what an earlier run wrote there; returns the files. Raises ConfigError."""
    check(wanted)
    program = command()
    made = [directory / "templates" / name for wish in wanted for name in SETS[wish]]
    try:
        for path in made:
            private_files.make_directory(path.parent)
            path.write_text(render(path.name, directory, program))
    except OSError as error:
        hint = f"make {directory / 'templates'} a directory of yours"
        raise ConfigError(f"cannot write templates in {directory}: {error.strerror}", hint=hint) from None
    return made
