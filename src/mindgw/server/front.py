"""The fast lane: a connection that serves the hot endpoints itself, beneath ASGI; whatever else is asked on it is uvicorn's.

Hot and other requests may follow each other on one connection, and be sent before the one before is answered: they wait in one line.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT

from mindgw import errors
from mindgw.config import Config
from mindgw.gateway.pipeline import Pipeline
from mindgw.server.bodies import declared
from mindgw.server.cors import Cors
from mindgw.server.guard import Guard
from mindgw.server.hot import Counter, Hot
from mindgw.server.marks import Mark
from mindgw.server.openai import HOT
from mindgw.server.protocol import Guarded

_PATHS = {path.encode(): path for path in HOT}


class Front(Guarded):
    """One connection."""

    def __init__(self, counter: Counter, guard: Guard, *args: Any, **kwargs: Any) -> None:
        super().__init__(guard, counter.cors, *args, **kwargs)
        self._counter = counter
        #: The request that begins when all that has come was parsed: what is wrong behind its head is said first.
        self._fresh: Hot | None = None
        #: True while nothing more is answered, because the client does not read what was.
        self._halted = False
        #: Bytes of bodies that came while an earlier request was served.
        self._ahead = 0

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._fresh is not None:
            hot, self._fresh = self._fresh, None
            if not hot.response_complete:
                hot.open()

    # -- the parser's callbacks -----------------------------------------------------------------------------------

    def _begin(self, fields: dict[bytes, bytes], version: str) -> None:
        path = _PATHS.get(self.url)
        if path is None or b"upgrade" in fields or self.parser.get_method() != b"POST":
            super()._begin(fields, version)
            return
        counter = self._counter
        mark = Mark(self.headers, fields, counter.cors.headers(fields.get(b"origin")) if counter.cors.is_on else None)
        hot = Hot(self, counter, (path, self.asks()), self.headers, mark, declared(fields.get(b"content-length", b"")))
        if version != "1.1":
            hot.unframed()
        elif b"connection" in fields:
            hot.keep_alive = self.parser.should_keep_alive()
        waits = self._halted or not self._between()
        self.cycle = hot
        if waits:
            self.pipeline.appendleft((hot, self.app))  # type: ignore[arg-type]
        else:
            self._served = self._fresh = hot
            self._ahead = 0

    def on_body(self, body: bytes) -> None:
        if type(self.cycle) is not Hot:
            super().on_body(body)
            return
        self._dry = 0
        self._got += len(body)
        self.cycle.feed(body)
        if self.cycle is not self._served:
            self._ahead += len(body)
            if self._ahead > HIGH_WATER_LIMIT:
                self._send_ahead()
        if self.cycle.lingers:
            self._since = self.guard.now

    def on_message_complete(self) -> None:
        if type(self.cycle) is not Hot or self._declined:
            super().on_message_complete()
            return
        self._dry, self._lead = 0, self._read
        self._awaited = 0
        self.cycle.complete()
        if self.cycle.response_complete:
            self._rest()

    # -- requests and answers -------------------------------------------------------------------------------------

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        if type(cycle) is not Hot:
            self._halted = False  # it waits for its client itself, and what comes behind it waits for it
            super()._start_asgi_task(cycle, app)
            return
        self._served = cycle
        cycle.open()

    def answered(self, hot: Hot) -> None:
        """All of its answer is written."""
        if not hot.keep_alive:
            self._deaf = True
            self.transport.close()
        elif self.flow.write_paused:
            self._halted = True
            self.flow.pause_reading()
            return
        if self.pipeline or self.flow.read_paused:
            self.on_response_complete()
        else:
            self.server_state.total_requests += 1
            self._rest()

    def linger(self) -> None:
        """Its answer is written; what the client still sends is taken in and dropped."""
        self._linger()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._halted:
            self._halted = False
            self.on_response_complete()
        elif type(self._served) is Hot:
            self._served.drained()

    def _call_off(self, wrong: errors.MindGWError | None) -> None:
        if type(self._served) is Hot:
            self._served.call_off(wrong)
        else:
            super()._call_off(wrong)

    def _mark(self) -> Mark:
        return self._served.mark if type(self._served) is Hot else super()._mark()


def lane(config: Config, pipeline: Pipeline, guard: Guard) -> Callable[..., Guarded]:
    """What makes the protocol of a connection, for uvicorn's `http`."""
    cors = Cors(config.cors.origins)
    if not config.fast_lane:
        return partial(Guarded, guard, cors)
    return partial(Front, Counter(pipeline, config.limits.body, cors), guard)
