"""Which addresses an agent dials."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindgw_agent import errors
from mindgw_agent.address import is_loopback, parse


@pytest.mark.parametrize(
    ("url", "root", "link"),
    [
        ("https://gw.example:8420", "https://gw.example:8420", "wss://gw.example:8420/agent/v1/link"),
        ("https://GW.example", "https://gw.example", "wss://gw.example/agent/v1/link"),
        ("wss://gw.example:443/", "https://gw.example", "wss://gw.example/agent/v1/link"),
        (" https://gw.example:8420/v1/ ", "https://gw.example:8420", "wss://gw.example:8420/agent/v1/link"),
        ("http://127.0.0.1:8420", "http://127.0.0.1:8420", "ws://127.0.0.1:8420/agent/v1/link"),
        ("ws://127.9.9.9", "http://127.9.9.9", "ws://127.9.9.9/agent/v1/link"),
        ("http://[::1]:8420", "http://[::1]:8420", "ws://[::1]:8420/agent/v1/link"),
        ("https://[2001:db8::1]", "https://[2001:db8::1]", "wss://[2001:db8::1]/agent/v1/link"),
    ],
)
def test_an_address_is_read(url: str, root: str, link: str) -> None:
    assert (parse(url).root, parse(url).link) == (root, link)


@pytest.mark.parametrize("scheme", ["http", "ws"])
@pytest.mark.parametrize(
    "host",
    "localhost LOCALHOST localhost. gw.example 10.0.0.1 0.0.0.0 [::] 127.1 0x7f000001 2130706433 127.0.0.1.nip.io".split(),
)
def test_without_tls_only_a_literal_loopback_address_is_dialled(scheme: str, host: str) -> None:
    with pytest.raises(errors.Misuse, match="plain HTTP") as caught:
        parse(f"{scheme}://{host}:8420")
    assert (caught.value.code, caught.value.exit_code) == ("insecure_address", 2)
    assert "--public-url" in caught.value.hint


@pytest.mark.parametrize(
    "url",
    [
        *("", "//gw", "gw.example", "gw.example:8420", "ftp://gw", "https://", "https://[::1", "https://gw:99999", "https://gw:x"),
        *("https://u:p@gw", "https://@gw", "https://gw/x", "https://gw?x", "https://gw#x"),
    ],
)
def test_what_is_no_root_of_a_server_is_refused_with_an_example(url: str) -> None:
    with pytest.raises(errors.Misuse) as caught:
        parse(url)
    assert "https://gateway.example:8420" in caught.value.hint


@given(st.text(max_size=60))
def test_any_text_is_an_address_or_a_misuse(text: str) -> None:
    for prefix in ("", "http://", "https://"):
        try:
            found = parse(prefix + text)
        except errors.Misuse:
            continue
        assert found.secure or is_loopback(found.host)
