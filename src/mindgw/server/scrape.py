"""`metrics.listen`: the metrics on an address of their own, without a key, for a scraper on a private network."""

import asyncio
import socket

from mindgw.server.collector import CONTENT_TYPE, Collector

#: A scrape's request must be over by then, in seconds, and within this size.
PATIENCE = 5.0
MAX_REQUEST = 8 * 1024


async def listen(taken: socket.socket, collector: Collector) -> asyncio.Server:
    """Serves on a socket that is bound; the caller closes what is returned."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(answer(head, collector))
                await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # whoever that was, it was no scraper
        finally:
            writer.close()

    return await asyncio.start_server(serve, sock=taken, limit=MAX_REQUEST)


def answer(head: bytes, collector: Collector) -> bytes:
    """The whole HTTP answer to a request with this head."""
    good = head.startswith((b"GET /metrics ", b"GET /metrics?"))
    body = collector.render() if good else b"see /metrics\n"
    status = b"200 OK" if good else b"404 Not Found"
    kind = CONTENT_TYPE.encode()
    return b"HTTP/1.1 %b\r\ncontent-type: %b\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b" % (status, kind, len(body), body)
