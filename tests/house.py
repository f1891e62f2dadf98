"""What the house tests look at: the files that belong to the project, parsed once."""

import ast
import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: Trees whose Python files are the product.
SOURCES = ("src/", "agent/src/")


@cache
def project_files() -> tuple[Path, ...]:
    """Every file that is or could be committed: tracked, or new and not ignored; links are left out."""
    listed = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"], capture_output=True, text=True, check=True
    )
    paths = (ROOT / name for name in sorted(set(listed.stdout.split("\0"))) if name)
    return tuple(path for path in paths if path.is_file() and not path.is_symlink())


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def code() -> tuple[Path, ...]:
    """The product's Python files; migrations, which are written once and never edited, are left out."""
    python = ((p, named(p)) for p in project_files() if p.suffix == ".py")
    return tuple(p for p, name in python if name.startswith(SOURCES) and "/migrations/versions/" not in name)


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def called(node: ast.expr) -> str:
    """The dotted name of what is called or read: `asyncio.Queue`; empty when it is not a plain name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (owner := called(node.value)):
        return f"{owner}.{node.attr}"
    return ""
