"""Somebody between an agent and its server: a relay that may turn, while it runs, into one that opens TLS and writes down what it reads."""

import contextlib
import select
import socket
import ssl
import threading
from collections.abc import Iterator

import trustme

#: Seconds after which a silent connection is given up.
PATIENCE = 20.0


class Relay:
    """Carries bytes between `port` and a server on this machine. Made by `relay`."""

    def __init__(self, server: int) -> None:
        #: Port of the server.
        self.server = server
        #: Who issues the certificate that is shown; None: TLS is not opened, the bytes pass as they are.
        self.authority: trustme.CA | None = None
        #: Show this authority's own file in place of the server's, instead of passing requests on.
        self.answers = False
        #: What was read of opened connections, one item a connection.
        self.heard: list[bytearray] = []
        #: Connections that were accepted, and those whose TLS was not agreed on.
        self.connections = 0
        self.refused = 0
        #: TLS towards the server (True), or none (False); only for opened connections.
        self.onward_tls = True
        #: TLS towards the agent; without it the words come in the clear, as to a listener on the agent's own machine.
        self.inward_tls = True
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._start(self._serve)

    def intercept(self, authority: trustme.CA | None, *, answers: bool = False) -> None:
        """From now on with a certificate of this authority; connections that are open now are cut."""
        self.authority, self.answers = authority, answers
        self.cut()

    def cut(self) -> None:
        """Ends every connection."""
        for sock in list(self._open):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    @property
    def carrying(self) -> bool:
        """Whether any connection is open."""
        return bool(self._open)

    @property
    def words(self) -> bytes:
        """All that was read."""
        return b"\n".join(bytes(one) for one in self.heard if one)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()

    def _start(self, work, *args: object) -> None:  # type: ignore[no-untyped-def]
        thread = threading.Thread(target=work, args=args)
        self._threads.append(thread)
        thread.start()

    def _serve(self) -> None:
        while True:
            try:
                inward, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._open.add(inward)
            self._start(self._carry, inward)

    def _carry(self, inward: socket.socket) -> None:
        opened = self.authority is not None
        inward.settimeout(PATIENCE)
        try:
            with inward, contextlib.suppress(OSError):
                talk = self._unwrap(inward) if opened and self.inward_tls else inward
                if talk is None:
                    return
                with talk:
                    self._connect(talk, opened=opened)
        finally:
            self._open.discard(inward)

    def _unwrap(self, inward: socket.socket) -> ssl.SSLSocket | None:
        assert self.authority is not None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
        try:
            talk = context.wrap_socket(inward, server_side=True)
        except OSError:
            self.refused += 1
            return None
        self._open.discard(inward)
        self._open.add(talk)
        return talk

    def _connect(self, talk: socket.socket, *, opened: bool) -> None:
        heard = bytearray()
        if opened:
            self.heard.append(heard)
        if opened and self.answers:
            assert self.authority is not None
            heard += talk.recv(65536)
            pem = self.authority.cert_pem.bytes()
            talk.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(pem) + pem)
            return
        with socket.create_connection(("127.0.0.1", self.server), PATIENCE) as plain:
            onward = _blind().wrap_socket(plain) if opened and self.onward_tls else plain
            with onward:
                self._open.add(onward)
                _pump(talk, onward, heard if opened else None)
                self._open.discard(onward)
        self._open.discard(talk)


def _blind() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _pump(inward: socket.socket, onward: socket.socket, heard: bytearray | None) -> None:
    """Carries both directions until one of them ends; in one thread, for a TLS connection is no place for two."""
    with contextlib.suppress(OSError, ValueError):
        while True:
            ready, _, _ = select.select([inward, onward], [], [], PATIENCE)
            for source in ready:
                data = _read(source)
                if not data:
                    return
                if source is inward and heard is not None:
                    heard += data
                (onward if source is inward else inward).sendall(data)


def _read(source: socket.socket) -> bytes:
    """What is there, with what TLS has decrypted beyond that."""
    data = source.recv(65536)
    while isinstance(source, ssl.SSLSocket) and source.pending():
        data += source.recv(65536)
    return data


@contextlib.contextmanager
def relay(server: int) -> Iterator[Relay]:
    """A relay that is gone afterwards."""
    made = Relay(server)
    try:
        yield made
    finally:
        made.close()
