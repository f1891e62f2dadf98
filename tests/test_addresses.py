"""Who asks: an address is believed from trusted proxies alone, whatever else is written into the header."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindgw import addresses
from mindgw.addresses import HOPS, MOST, Networks, client, group, parse

TRUSTED = Networks(["10.0.0.0/8", "127.0.0.1", "2001:db8:1::/48"])
some_address = st.ip_addresses().map(str)
header = st.one_of(st.binary(max_size=60), st.text("0123456789abcdef.:, []", max_size=60).map(str.encode))


@pytest.mark.parametrize(
    ("host", "counted"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8::1", "2001:0db8:0000:0000"),
        ("fe80::1%eth0", "fe80:0000:0000:0000"),
        ("127.0.0.1", ""),
        ("::1", ""),
        ("::ffff:127.0.0.9", ""),
        ("127.8.8.8", ""),
        ("2001:db8:1:2:3:4:5:6", "2001:0db8:0001:0002"),
        ("", ""),
        ("/run/socket", ""),
    ],
)
def test_who_is_counted_as_one(host, counted):
    assert group(host) == counted


@pytest.mark.parametrize("text", ["", "10.0.0.1/8", "300.1.1.1", "10.0.0.0/33", "host.example.org", "1.2.3.4/255.255.0.255"])
def test_what_is_no_network_is_refused(text):
    with pytest.raises(ValueError, match=r"^must be"):
        Networks([text])


def test_a_list_of_networks_has_an_end():
    assert len(Networks(["10.0.0.1"] * MOST).texts) == MOST
    with pytest.raises(ValueError, match=r"^must be at most"):
        Networks(["10.0.0.1"] * (MOST + 1))


def test_an_address_lies_in_its_networks_however_it_is_written():
    assert "10.1.2.3" in TRUSTED
    assert "::ffff:10.1.2.3" in TRUSTED
    assert "2001:DB8:1::5" in TRUSTED
    assert "11.1.2.3" not in TRUSTED
    assert "" not in TRUSTED
    assert "nobody" not in TRUSTED
    assert 7 not in TRUSTED
    assert "10.1.2.3" not in Networks([])


def test_answers_about_addresses_are_not_kept_without_end(monkeypatch):
    monkeypatch.setattr(addresses, "KNOWN", 10)
    networks = Networks(["10.0.0.0/8"])
    for last in range(100):
        assert f"10.0.0.{last}" in networks
        assert len(networks._known) <= 10


@pytest.mark.parametrize(
    ("peer", "lines", "asks"),
    [
        ("192.0.2.7", [b"198.51.100.1"], "192.0.2.7"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", [b"198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", [b"6.6.6.6, 198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", [b"6.6.6.6", b"198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", [b"6.6.6.6, 198.51.100.1, 10.0.0.9"], "198.51.100.1"),
        ("10.0.0.1", [b"10.0.0.8, 10.0.0.9"], "10.0.0.8"),
        ("10.0.0.1", [b"198.51.100.1, unknown, 10.0.0.9"], "10.0.0.9"),
        ("10.0.0.1", [b"198.51.100.1, , 10.0.0.9"], "10.0.0.9"),
        ("10.0.0.1", [b"198.51.100.1:4711"], "198.51.100.1"),
        ("10.0.0.1", [b"[2001:db8::7]:4711"], "2001:db8::7"),
        ("10.0.0.1", [b"2001:db8::7"], "2001:db8::7"),
        ("10.0.0.1", [b"::ffff:198.51.100.1"], "198.51.100.1"),
        ("2001:db8:1::2", [b"198.51.100.1"], "198.51.100.1"),
        ("", [b"198.51.100.1"], ""),
        ("10.0.0.1", [b"\xff\x00"], "10.0.0.1"),
    ],
)
def test_who_asks(peer, lines, asks):
    assert client(peer, lines, TRUSTED) == asks


def test_a_thousand_hops_are_not_read():
    lines = [b"198.51.100.1, " + b", ".join([b"10.0.0.2"] * HOPS)]
    assert client("10.0.0.1", lines, TRUSTED) == "10.0.0.2"


@given(some_address, st.lists(header, max_size=3))
def test_nobody_who_is_not_trusted_is_believed(peer, lines):
    assert client(peer, lines, Networks([])) == peer
    if peer not in TRUSTED:
        assert client(peer, lines, TRUSTED) == peer


@given(st.lists(header, max_size=3), some_address)
def test_what_a_client_writes_into_the_header_never_hides_it(lines, real):
    """A trusted proxy adds whom it sees behind whatever was there."""
    shown = str(parse(real))
    asks = client("10.0.0.1", [*lines, real.encode()], TRUSTED)
    assert asks == shown or real in TRUSTED


@given(st.lists(header, max_size=5))
def test_whatever_is_in_the_header_an_address_comes_out(lines):
    assert parse(client("10.0.0.1", lines, TRUSTED)) is not None
