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
    with pytest.raises(ConfigError, match="'docker': choose from caddy, config, nginx, systemd"):
        templates.write(["docker"], tmp_path)


def test_folder_that_cannot_be_written_is_a_clear_error(tmp_path):
    (tmp_path / "templates").write_text("in the way")
    with pytest.raises(ConfigError, match="cannot write templates"):
        templates.write(["config"], tmp_path)


def test_sites_have_the_name_and_the_port_of_the_public_url_and_find_the_server(tmp_path):
    (tmp_path / "config.yaml").write_text('public_url: "https://ai.example.org:8443"\nlisten: "127.0.0.1:9000"\n')
    site, other = (path.read_text() for path in templates.write(["nginx", "caddy"], tmp_path))
    assert "server_name ai.example.org;" in site and "listen 8443 ssl" in site and "listen [::]:8443 ssl" in site
    assert "server 127.0.0.1:9000;" in site and "/live/ai.example.org/fullchain.pem" in site
    assert "ai.example.org:8443 {" in other and "reverse_proxy 127.0.0.1:9000 {" in other
    assert "gw.example.com" not in site + other


def test_a_site_without_a_public_url_keeps_the_name_of_the_example(tmp_path):
    (site,) = templates.write(["nginx"], tmp_path)
    assert "server_name gw.example.com;" in site.read_text() and "listen 443 ssl" in site.read_text()
