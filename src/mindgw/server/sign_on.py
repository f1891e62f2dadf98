"""Sign-on in the application: who asks the providers, and what is done about them beside the requests."""

from collections.abc import Callable

from litestar.datastructures import State

from mindgw.config import Config
from mindgw.control.cookies import Cookies
from mindgw.control.rechecks import Rechecks
from mindgw.control.secrets import Secrets
from mindgw.control.sign_on import SignOn
from mindgw.gateway.pipeline import Pipeline
from mindgw.server.chores import Chore
from mindgw.store.database import Database

#: Seconds between looks at who is to be asked about, and for sign-ons that are long over.
RECHECK, LOOK = 60.0, 600.0


class Front:
    """The providers of a server, and whom the news of their people goes to."""

    def __init__(self, config: Config, secrets: Secrets, database: Database) -> None:
        self.sign_on = SignOn(config, secrets, database, self._changed, self._gone)
        self._rechecks = Rechecks(self.sign_on, config.sessions)
        self._cookies = Cookies(secrets.sealing, config.root_url)
        self._pipeline: Pipeline | None = None
        self._forget_sessions: Callable[[], None] | None = None

    def open(self, state: State, pipeline: Pipeline, forget_sessions: Callable[[], None]) -> list[Chore]:
        """To be called once, before anybody comes. What has to be done beside the requests; nothing without providers."""
        self._pipeline, self._forget_sessions = pipeline, forget_sessions
        state.sign_on, state.rechecks, state.cookies = self.sign_on, self._rechecks, self._cookies
        if not self.sign_on.sources:
            return []
        return [
            Chore("asking providers about those who are signed in", RECHECK, self._rechecks.all),
            Chore("forgetting sign-ons that are over", LOOK, self.sign_on.forget),
        ]

    def _changed(self, user_id: str) -> None:
        assert self._pipeline is not None
        assert self._forget_sessions is not None
        self._forget_sessions()
        self._pipeline.forget_user(user_id)

    def _gone(self, user_id: str) -> None:
        assert self._pipeline is not None
        self._changed(user_id)
        self._pipeline.cut_user(user_id)
