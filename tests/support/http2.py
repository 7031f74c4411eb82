"""One gRPC call, frame by frame: as a client makes it that stops in the middle of a request."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
ACK = END_STREAM = 1
INITIAL_WINDOW_SIZE = 4
WINDOW_BYTES = 65535
FRAME_BYTES = 16384
END_HEADERS = 4
ZEROS = b"\0" * FRAME_BYTES


def frame(kind: int, flags: int, stream: int, content: bytes) -> bytes:
    """RFC 9113, section 4.1."""
    return struct.pack(">I", len(content))[1:] + struct.pack(">BBI", kind, flags, stream) + content


def headers(pairs: Iterable[tuple[str, str]]) -> bytes:
    """HPACK without its tables: literals that are not indexed (RFC 7541, section 6.2.2)."""

    def text(value: str) -> bytes:
        length, prefix = len(value), b""
        if length < 127:
            return bytes([length]) + value.encode()
        prefix, length = b"\x7f", length - 127
        while length >= 128:
            prefix, length = prefix + bytes([length % 128 + 128]), length // 128
        return prefix + bytes([length]) + value.encode()

    return b"".join(b"\x00" + text(name) + text(value) for name, value in pairs)


class Call:
    """A call on a connection of its own."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, window_bytes: int) -> None:
        self._reader = reader
        self._writer = writer
        # What may be sent: on the connection, and of the stream.
        self._windows = {0: window_bytes, 1: window_bytes}
        self._initial = WINDOW_BYTES
        self._opened = asyncio.Event()
        # Headers and trailers.
        self.heard = b""
        self.ended = asyncio.Event()

    async def send(self, size_bytes: int) -> None:
        """Sends so many zeros of the request, as fast as the server takes them, or until it ends the call."""
        while size_bytes and not self.ended.is_set():
            allowed = min(size_bytes, FRAME_BYTES, *self._windows.values())
            if allowed <= 0:
                self._opened.clear()
                await self._opened.wait()
                continue
            self._writer.write(frame(DATA, 0, 1, ZEROS[:allowed]))
            for window in self._windows:
                self._windows[window] -= allowed
            size_bytes -= allowed
            try:
                await self._writer.drain()
            except ConnectionError:
                self._end()

    async def listen(self) -> None:
        """Until the call ends."""
        try:
            while not self.ended.is_set():
                head = await self._reader.readexactly(9)
                length = int.from_bytes(head[:3], "big")
                self._take(head[3], head[4], int.from_bytes(head[5:], "big"), await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            self._end()

    def _take(self, kind: int, flags: int, stream: int, content: bytes) -> None:
        if kind == WINDOW_UPDATE:
            self._windows[stream] += int.from_bytes(content, "big")
            self._opened.set()
        elif kind == SETTINGS and not flags & ACK:
            for at in range(0, len(content), 6):
                name, value = struct.unpack(">HI", content[at : at + 6])
                if name == INITIAL_WINDOW_SIZE:
                    self._windows[1] += value - self._initial
                    self._initial = value
            self._opened.set()
            self._writer.write(frame(SETTINGS, ACK, 0, b""))
        elif kind == PING and not flags & ACK:
            self._writer.write(frame(PING, ACK, 0, content))
        elif kind == HEADERS:
            self.heard += content
            if flags & END_STREAM:
                self._end()
        elif kind in {RST_STREAM, GOAWAY}:
            self.heard += content
            self._end()

    def _end(self) -> None:
        self.ended.set()
        self._opened.set()


@asynccontextmanager
async def begun(
    address: str, path: str, metadata: Iterable[tuple[str, str | bytes]], size_bytes: int
) -> AsyncIterator[Call]:
    """A call whose request is promised to have so many bytes; of them none is sent yet."""
    host, port = address.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    named: Mapping[str, str] = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": address,
        "te": "trailers",
        "content-type": "application/grpc",
        **{name: str(value) for name, value in metadata},
    }
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0, b""))
    writer.write(frame(HEADERS, END_HEADERS, 1, headers(named.items())))
    head = struct.pack(">BI", 0, size_bytes)
    writer.write(frame(DATA, 0, 1, head))
    call = Call(reader, writer, WINDOW_BYTES - len(head))
    listening = asyncio.create_task(call.listen())
    try:
        yield call
    finally:
        listening.cancel()
        writer.close()
