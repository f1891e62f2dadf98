"""The documentation names everything there is, says what the code says, and its links lead somewhere."""

import ast
import re
import subprocess
import sys

import pytest

from scripts import reference
from tests.house import ROOT, code, parsed

PAGES = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs/reference").glob("*.md")}
WRITTEN_PAGES = sorted([*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"])


@pytest.mark.parametrize("page", reference.WRITERS)
def test_reference_pages_are_up_to_date(page):
    """When this fails: scripts/docs."""
    assert PAGES[page] == reference.WRITERS[page]()


def test_every_command_is_in_the_reference():
    names = [name for name, _, _ in reference.all_commands()]
    assert len(names) > 20
    assert [name for name in names if not re.search(rf"(?m)^##+ {name}$", PAGES["cli.md"])] == []


def test_every_setting_is_explained():
    found = list(reference.settings(reference.config.Config))
    assert [key for key, _, remark in found if not remark] == []
    assert [key for key, _, _ in found if f"`{key}`" not in PAGES["settings.md"]] == []


def test_every_variable_of_the_environment_is_explained():
    read = {
        node.value
        for path in code()
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"MINDGW_[A-Z_]+", node.value)
    }
    assert [name for name in sorted(read) if f"`{name}`" not in PAGES["settings.md"]] == []


def test_every_error_code_is_in_the_reference():
    """Codes of the three trees, and those given where an error is raised."""
    trees = (reference.errors.MindGWError, reference.client_errors.ClientError, reference.mindgw_agent.errors.AgentError)
    codes = {kind.code for tree in trees for kind in reference.below(tree)} | {text for text, _ in reference.named_codes()}
    assert [text for text in sorted(codes) if f"`{text}`" not in PAGES["errors.md"]] == []


def test_every_metric_is_in_the_reference():
    assert [family.name for family in reference.families() if f"`{family.name}" not in PAGES["metrics.md"]] == []


def test_the_check_of_the_reference_finds_a_difference(tmp_path):
    """`scripts/docs --check`, on a page that was changed by hand, says which and exits 1."""
    script = (
        "import sys, pathlib; sys.path.insert(0, sys.argv[1]); from scripts import reference;"
        "reference.PAGES = pathlib.Path(sys.argv[2]); sys.exit(reference.main(['--check']))"
    )
    done = subprocess.run([sys.executable, "-c", script, ROOT, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "docs/reference/cli.md" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("page", WRITTEN_PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = re.sub(r"(?s)```.*?```", "", page.read_text(encoding="utf-8"))
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"\w+:", target)]
    assert [target for target in targets if target and not (page.parent / target).exists()] == []


def test_every_page_can_be_reached_from_the_index():
    index = ROOT / "docs/README.md"
    linked = {(index.parent / target).resolve() for target in re.findall(r"\]\(([^)#\s]+)", index.read_text(encoding="utf-8"))}
    pages = {path for path in (ROOT / "docs").rglob("*.md") if path != index}
    assert sorted(str(path.relative_to(ROOT)) for path in pages - linked) == []
