"""Clients over TLS that are slow, silent or too many: what the limits mean there is what they mean without."""

import asyncio
import socket
import ssl
import struct
from contextlib import ExitStack, suppress

import pytest
import trustme

from mindgw.server import guard, knock, protocol
from mindgw_agent import wire
from tests.e2e.raw import Raw, head, request
from tests.server.hall import LANES, chat, hall, visited

MIB = 2**20


class Secure:
    """A hall with a TLS listener."""

    def __init__(self, inner):
        self.hall = inner
        authority = trustme.CA()
        self.context, self.client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
        authority.issue_cert("127.0.0.1").configure_cert(self.context)
        authority.configure_trust(self.client)
        listening = asyncio.run_coroutine_threadsafe(self._listen(), inner.loop)
        self.server = listening.result(30)
        #: What has knocked.
        self.knocks = []
        self.port = self.server.sockets[0].getsockname()[1]

    async def _listen(self):
        return await asyncio.get_running_loop().create_server(self._knock, "127.0.0.1", 0)

    def _knock(self):
        self.knocks.append(knock.Knock(self.hall.guard, self.context, self._protocol))
        return self.knocks[-1]

    def _protocol(self):
        server = self.hall.server
        return server.config.http_protocol_class(config=server.config, server_state=server.server_state, app_state={})

    def raw(self, window=0):
        made = Raw(self.port, window=window)
        made.socket = self.client.wrap_socket(made.socket, server_hostname="127.0.0.1")
        return made

    def deaf(self, kind):
        """A connection that takes nothing of an answer without end."""
        raw = self.raw(window=4096)
        raw.send(head("/flood", method="GET") if kind == "cold" else request(self.hall.key, chat(kind, stream=True)))
        self.hall.until(lambda: any(connection.flow.write_paused for connection in self.connections), "nothing more fits")
        return raw

    @property
    def connections(self):
        return list(self.hall.server.server_state.connections)


def received(raw):
    """Bytes that have come to that end of a connection, read or not: tcpi_bytes_received of Linux' struct tcp_info."""
    return struct.unpack_from("=Q", raw.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 136), 128)[0]


@pytest.fixture(scope="module", params=LANES)
def secure(request):
    with hall(request.param) as made:
        secured = Secure(made)
        yield secured
        made.do(secured.server.close)


@pytest.fixture
def here(secure):
    with visited(secure.hall):
        yield secure


@pytest.mark.parametrize("kind", ["endless", "cold"])
def test_who_reads_slowly_is_not_cut_off(here, kind):
    with here.deaf(kind) as raw:
        for _ in range(12):
            before, taken = received(raw), 0
            while received(raw) == before and taken < 4 * MIB:
                taken += len(raw.socket.recv(8192))
            here.hall.passes(protocol.STALL * 0.7)
        assert here.hall.do(lambda: len(here.connections)) == 1
        here.hall.passes(protocol.STALL * 1.1)


@pytest.mark.parametrize("kind", ["endless", "cold"])
def test_who_does_not_read_is_cut_off(here, kind):
    with here.deaf(kind):
        here.hall.passes(protocol.STALL - 1)
        assert here.hall.do(lambda: len(here.connections)) == 1
        here.hall.passes(2.0)
        here.hall.until(lambda: not here.connections)


@pytest.mark.parametrize("kind", ["endless", "endless drops", "cold"])
def test_who_does_not_read_costs_no_more_than_without(here, kind):
    """A window of credit, and what the transports above and beneath TLS take; they take a piece more when it is large."""
    most = wire.WINDOW + protocol.ROOM + knock.BENEATH + (0 if kind == "endless drops" else 2 * wire.MAX_PAYLOAD)
    with here.deaf(kind):
        if kind != "cold":
            here.hall.until(lambda: not here.hall.box.session.writable(here.hall.box.stream), "the engine waits")
        (connection,), beneath = here.hall.do(lambda: here.connections), here.knocks[-1].transport
        held = here.hall.do(lambda: connection.transport.get_write_buffer_size() + beneath.get_write_buffer_size())
        kept = here.hall.do(lambda: len(getattr(connection.cycle, "_kept", b"")))
        assert held + kept < 1.15 * most  # chunks and TLS add to drops
        here.hall.passes(protocol.STALL + 1)


# -- handshakes ----------------------------------------------------------------------------------------------------------


def watched(here):
    return here.hall.do(lambda: len(here.hall.guard._watched))


def gone(raw):
    """True when the server gave it up."""
    try:
        return raw.socket.recv(1) == b""
    except ConnectionResetError:
        return True


def test_a_silent_connection_counts_from_the_start(here):
    with Raw(here.port):
        here.hall.until(lambda: here.hall.guard._watched)
    here.hall.until(lambda: not here.hall.guard._watched)
    assert not here.connections


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01"], ids=["no TLS", "half a greeting"])
def test_who_fails_at_the_handshake_does_not_stay(here, said):
    with Raw(here.port) as raw:
        raw.send(said)
        raw.socket.shutdown(socket.SHUT_WR)
        with suppress(ConnectionResetError):
            while raw.more():  # to the end
                pass
    here.hall.until(lambda: not here.hall.guard._watched)
    assert not here.connections


def test_who_does_not_finish_its_handshake_makes_room_when_there_is_little(here, monkeypatch):
    with Raw(here.port) as raw:
        here.hall.until(lambda: here.hall.guard._watched)
        here.hall.passes(knock.HURRIED + 1)
        assert watched(here) == 1
        monkeypatch.setattr(here.hall.guard, "_most", 1)
        here.hall.passes(0.0)
        assert gone(raw)


def test_silent_connections_of_one_address_are_no_more_than_it_may_have(here, monkeypatch):
    monkeypatch.setattr(here.hall.guard, "_most_of_one", 3)
    monkeypatch.setattr(guard, "group", lambda _: "192.0.2.1")
    with ExitStack() as stack:
        kept = [stack.enter_context(Raw(here.port)) for _ in range(3)]
        here.hall.until(lambda: len(here.hall.guard._watched) == 3)
        with Raw(here.port) as one_too_many:
            assert gone(one_too_many)
        assert watched(here) == len(kept)
        kept[0].socket.close()
        here.hall.until(lambda: len(here.hall.guard._watched) == 2)
        with here.raw() as raw:
            raw.send(head("/deaf", method="GET"))
            assert raw.answer().body == b"deaf"


def test_who_leaves_in_the_middle_of_its_handshake_is_forgotten(here):
    with here.raw() as raw:
        raw.send(head("/deaf", method="GET"))
        assert raw.answer().status == 200 and watched(here) == 1
    here.hall.until(lambda: not here.hall.guard._watched and not here.hall.guard._of)
