"""A data directory made ready to serve: settings, secrets, certificate, database, the first people, the first key, a join token."""

import os
from datetime import datetime
from pathlib import Path

import msgspec
from sqlmodel import col, or_, select
from sqlmodel.ext.asyncio.session import AsyncSession

from mindgw import clock, config, settings_file
from mindgw.config import Config
from mindgw.control import certificates, invitation, lock, secrets
from mindgw.control.secrets import Secrets
from mindgw.errors import ConfigError
from mindgw.quantities import split_address
from mindgw.store import audit, fleet, keys, people
from mindgw.store.database import Database
from mindgw.store.tables import Key
from mindgw_agent import private_files

#: Who does what is done on the server's own disk.
LOCAL = "local"


class Wishes(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator said; None keeps what the settings say."""

    #: Port of the loopback listener.
    port: int | None = None
    #: https://host:port that others reach the server by; empty: nobody does any more.
    public_url: str | None = None
    #: HOST:PORT of the TLS listener.
    tls_listen: str | None = None
    #: "sqlite" or an address.
    database: str | None = None
    #: Make another admin key, although there is one.
    new_admin_key: bool = False


class InitResult(msgspec.Struct, frozen=True, kw_only=True):
    """What `init` has to tell; the key and the token exist nowhere else."""

    data_dir: str
    #: Ends in /v1.
    base_url: str
    #: Root URL for everybody.
    root_url: str
    #: The admin key that was made now; None when there was one already.
    api_key: str | None
    join_token: str
    #: Certificate of the CA, PEM.
    ca_pem: str
    #: Names the server in the operator's store of credentials.
    fingerprint: str
    #: Whether there was no settings file before.
    created: bool
    #: The copy of the database that was made before it was migrated.
    backup: Path | None = None

    def __repr__(self) -> str:
        return f"InitResult({self.data_dir})"


async def initialise(directory: Path, wishes: Wishes | None = None, *, now: datetime | None = None) -> InitResult:
    """Makes what is missing and leaves the rest alone, so it may run again, also beside a running server, which reads changed settings
    at its next start. Raises ConfigError, whose message says what to do."""
    wishes, now = wishes or Wishes(), now or clock.utcnow()
    directory = _make(directory)
    settings, created = _settle(directory, wishes)
    database = Database(settings.database_url)
    try:
        backup = await prepare(database, directory)
        own = secrets.obtain(directory)
        renew(settings, own, now)
        async with database.write() as session:
            key = await _first_people(session, own, now, again=wishes.new_admin_key)
            row, token = invitation.mint(own, settings, now)
            await fleet.forget_join_tokens(session, now)
            await fleet.add_join_token(session, row)
            await audit.record(session, LOCAL, "join_token.create", row.id)
    finally:
        await database.close()
    return InitResult(
        data_dir=str(directory),
        base_url=f"{settings.root_url}/v1",
        root_url=settings.root_url,
        api_key=key,
        join_token=token,
        ca_pem=own.ca_pem.decode(),
        fingerprint=own.fingerprint,
        created=created,
        backup=backup,
    )


async def new_admin_key(directory: Path, *, now: datetime | None = None) -> InitResult:
    """`initialise` with another admin key, for an operator who has lost the first one; the lost one stays good until it is revoked."""
    return await initialise(directory, Wishes(new_admin_key=True), now=now)


async def prepare(database: Database, directory: Path) -> Path | None:
    """Brings the database to the schema of this release; `serve` calls it too. Returns the copy that was made first. Raises ConfigError
    when a running server still uses the old schema, or when the database is that of another data directory."""
    revision = await database.revision()
    serving = lock.holder(directory)
    if revision is not None and serving not in {None, os.getpid()} and not await database.at_head():
        raise ConfigError(f"the database must be migrated, but process {serving} serves from {directory}: stop it first")
    backup = await database.migrate()
    if "pepper" in secrets.missing(directory):
        async with database.read() as session:
            orphaned = (await session.exec(select(Key.id).limit(1))).first()
        if orphaned is not None:
            raise ConfigError(f"the database has keys, but {directory} has lost their pepper: restore its files from a backup")
    return backup


def renew(settings: Config, own: Secrets, now: datetime | None = None) -> bool:
    """Renews the server's certificate when it is due; True when it must be loaded anew. Call it at the start and once a day."""
    names = certificates.names_of(settings.public_url)
    return certificates.obtain_server(settings.directory, own.ca_pem, own.ca_key, names, now)


def _make(directory: Path) -> Path:
    try:
        private_files.make_directory(directory)
        return directory.absolute()
    except OSError as error:
        raise ConfigError(f"cannot make the data directory {directory}: {error.strerror}; choose another with --data-dir") from None


def _settle(directory: Path, wishes: Wishes) -> tuple[Config, bool]:
    """The settings, written down when they are new or were changed, and whether they are new."""
    file = directory / config.FILE
    created = not file.exists()
    text = config.read(file, missing_ok=True)
    current = config.parse(text, str(directory), file=str(file))
    changes = {key: value for key, value in _changes(current, wishes).items() if value != getattr(current, key)}
    if not changes and not created:
        return current, False
    if created:
        wanted = config.parse("", str(directory), overrides=changes)
        text = config.dump(wanted)
    else:
        text = settings_file.amend(text, changes, str(file))
    settings = config.parse(text, str(directory), file=str(file))
    try:
        private_files.write(file, text.encode())
    except OSError as error:
        raise ConfigError(f"cannot write {file}: {error.strerror}; choose another directory with --data-dir") from None
    return settings, created


def _changes(current: Config, wishes: Wishes) -> dict[str, str]:
    said = {"public_url": wishes.public_url, "tls_listen": wishes.tls_listen, "database": wishes.database}
    changes = {key: value.rstrip("/") for key, value in said.items() if value is not None}
    if wishes.port is not None:
        host, _ = split_address(current.listen)
        changes["listen"] = f"[{host}]:{wishes.port}" if ":" in host else f"{host}:{wishes.port}"
    return changes


async def _first_people(session: AsyncSession, own: Secrets, now: datetime, *, again: bool) -> str | None:
    """The default organisation, team and admin user, and the first admin key where there is none that is good."""
    org = await people.get_or_create_org(session)
    team = await people.get_or_create_team(session, org.id)
    user = await people.get_or_create_user(session, org.id, people.ADMIN, name="Administrator", admin=True)
    good = col(Key.admin).is_(True), col(Key.revoked_at).is_(None), or_(col(Key.expires_at).is_(None), col(Key.expires_at) > now)
    found = (await session.exec(select(Key.id).where(*good).limit(1))).first()
    if found is not None and not again:
        return None
    wanted = keys.NewKey(name="admin", org_id=org.id, team_id=team.id, user_id=user.id, admin=True)
    row, text = await keys.create(session, wanted, own.pepper)
    await audit.record(session, LOCAL, "key.create", row.id, name=row.name, admin=True)
    return text
