"""Clients over TLS that are slow, silent or too many: what the limits mean there is what they mean without."""

import asyncio
import socket
import ssl
import struct

import pytest
import trustme

from mindgw.server import protocol
from tests.e2e.raw import Raw, head, request
from tests.server.hall import LANES, chat, hall

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
        self.port = self.server.sockets[0].getsockname()[1]

    async def _listen(self):
        return await asyncio.get_running_loop().create_server(self._protocol, "127.0.0.1", 0, ssl=self.context)

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
        raw.send(request(self.hall.key, chat("endless", stream=True)) if kind == "hot" else head("/flood", method="GET"))
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
    secure.hall.gate.clear()
    yield secure
    secure.hall.gate.set()
    secure.hall.idle()
    secure.hall.until(lambda: not secure.connections, "every connection is over")


@pytest.mark.parametrize("kind", ["hot", "cold"])
def test_who_reads_slowly_is_not_cut_off(here, kind):
    with here.deaf(kind) as raw:
        for _ in range(12):
            before, taken = received(raw), 0
            while received(raw) == before and taken < 4 * MIB:
                taken += len(raw.socket.recv(8192))
            here.hall.passes(protocol.STALL * 0.7)
        assert here.hall.do(lambda: len(here.connections)) == 1
        here.hall.passes(protocol.STALL * 1.1)


@pytest.mark.parametrize("kind", ["hot", "cold"])
def test_who_does_not_read_is_cut_off(here, kind):
    with here.deaf(kind):
        here.hall.passes(protocol.STALL - 1)
        assert here.hall.do(lambda: len(here.connections)) == 1
        here.hall.passes(2.0)
        here.hall.until(lambda: not here.connections)


@pytest.mark.parametrize("kind", ["hot", "cold"])
def test_who_does_not_read_costs_no_more_than_without(here, kind):
    with here.deaf(kind):
        (connection,) = here.hall.do(lambda: here.connections)
        assert here.hall.do(connection.transport.get_write_buffer_size) < 4 * protocol.ROOM
        here.hall.passes(protocol.STALL + 1)
