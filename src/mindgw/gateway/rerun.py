"""The lane of a request that an operator runs again: nobody is connected, the answer comes in one piece."""

import asyncio

from mindgw import errors
from mindgw.gateway import signals


class Rerun:
    """Waits for the end of one exchange (`pipeline.Lane`)."""

    __slots__ = ("_end",)

    def __init__(self) -> None:
        #: The answer as the engine gave it, or what went wrong.
        self._end: asyncio.Future[signals.Answer | errors.MindGWError] = asyncio.get_running_loop().create_future()

    def perform(self, effects: list[signals.Effect]) -> None:
        """Called by the pipeline."""
        for effect in effects:
            if self._end.done():
                return
            if isinstance(effect, signals.Answer):
                self._end.set_result(effect)
            elif isinstance(effect, signals.Fail):
                self._end.set_result(effect.error)

    async def answer(self) -> bytes:
        """The body of the answer; raises what the client would have heard."""
        end = await self._end
        if isinstance(end, errors.MindGWError):
            raise end
        return end.body
