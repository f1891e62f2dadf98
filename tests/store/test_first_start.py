"""`init` and the start of a server on both databases."""

from mindgw import config
from mindgw.control import secrets, setup
from mindgw.control.setup import Wishes, initialise
from mindgw.store import keys
from mindgw.store.database import Database
from mindgw_agent import tokens


async def test_init_twice_on_any_database_makes_one_admin(empty, tmp_path):
    first = await initialise(tmp_path / "data", Wishes(database=empty))
    second = await initialise(tmp_path / "data")
    assert second.api_key is None
    settings = config.load(None, tmp_path / "data")
    assert settings.database == empty
    database = Database(settings.database_url)
    assert await setup.prepare(database, tmp_path / "data") is None
    async with database.read() as session:
        (row,) = await keys.page(session)
    await database.close()
    key_id, secret = tokens.parse_key(first.api_key)
    assert (row.id, row.digest) == (key_id, keys.digest(secrets.load(tmp_path / "data").pepper, secret))
