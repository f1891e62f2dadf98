"""How far the other side has come: as the kernel tells, or as what waits shows where it does not."""

import asyncio
import importlib
import socket
import sys

import pytest

from mindgw.server import progress

#: More than fits between two ends of which one does not read.
MUCH = b"x" * 32 * 2**20


async def connected():
    """Both ends of a connection: what is written to, and a socket that takes little."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        reader = socket.socket()
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.connect(listening.getsockname())
        accepted, _ = listening.accept()
    reader.setblocking(False)
    transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=accepted)
    progress.show(transport)
    return transport, reader


@pytest.mark.parametrize("told", [True, False], ids=["the kernel tells", "it tells nothing"])
async def test_it_grows_as_the_other_side_reads(told, monkeypatch):
    if not told:
        monkeypatch.setattr(progress, "_INFO", None)
    transport, reader = await connected()
    with reader:
        transport.write(MUCH)
        before, read = progress.taken(transport), 0
        while read < len(MUCH) // 2:
            read += len(await asyncio.get_running_loop().sock_recv(reader, 2**20))
        assert progress.taken(transport) > before + len(MUCH) // 4
        transport.abort()


async def test_what_is_just_being_closed_makes_no_progress():
    transport, reader = await connected()
    with reader:
        transport.write(b"x")
        before = progress.taken(transport)
        transport.abort()
        await asyncio.sleep(0)
        assert progress.taken(transport) <= max(before, 1)


async def test_a_kernel_that_says_too_little_says_nothing(monkeypatch):
    monkeypatch.setattr(progress, "_INFO", socket.TCP_NODELAY)  # an answer of four bytes
    transport, reader = await connected()
    with reader:
        transport.write(MUCH)
        assert progress.taken(transport) == -transport.get_write_buffer_size() < 0
        transport.abort()


def test_other_systems_lack_the_names(monkeypatch):
    monkeypatch.delattr(socket, "TCP_INFO")
    monkeypatch.delattr(socket, "TCP_NOTSENT_LOWAT")
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.delitem(sys.modules, "mindgw.server.progress")
    elsewhere = importlib.import_module("mindgw.server.progress")
    monkeypatch.setattr("mindgw.server.progress", progress)

    class Transport:
        """FAKE of one whose socket knows no such option."""

        def get_extra_info(self, _):
            return self

        def setsockopt(self, *_):
            raise AssertionError("there is none")

        def get_write_buffer_size(self):
            return 7

    elsewhere.show(Transport())
    assert elsewhere.taken(Transport()) == -7
