import pytest

from mindgw.control import templates
from mindgw.errors import ConfigError


def test_units_are_rendered_for_this_data_and_this_command(tmp_path):
    made = templates.write(["systemd", "config"], tmp_path)
    assert [path.name for path in made][:3] == ["mindgw.service", "mindgw-agent.service", "config.example.yaml"]
    assert {"config.production.yaml", "gateway.dev.yaml"} <= {path.name for path in made}
    unit = made[0].read_text()
    assert f"ExecStart={templates.command()} serve --data-dir {tmp_path}\n" in unit
    assert "/var/lib/mindgw-agent" in made[1].read_text() and "/usr/local/bin" not in unit


def test_unknown_template_is_named_with_those_that_exist(tmp_path):
    with pytest.raises(ConfigError, match="'docker': choose from config, systemd"):
        templates.write(["docker"], tmp_path)


def test_folder_that_cannot_be_written_is_a_clear_error(tmp_path):
    (tmp_path / "templates").write_text("in the way")
    with pytest.raises(ConfigError, match="cannot write templates"):
        templates.write(["config"], tmp_path)
