"""A data directory made ready to serve: settings, secrets, certificate, database, the first people, the first key, a join token."""

import os
from datetime import datetime
from pathlib import Path
from typing import Literal

import msgspec
from sqlmodel import col, or_, select
from sqlmodel.ext.asyncio.session import AsyncSession

from mindgw import clock, config, settings_edit
from mindgw.config import Config
from mindgw.control import certificates, invitation, lock, replica, secrets, witness
from mindgw.control.secrets import Secrets
from mindgw.errors import ConfigError
from mindgw.quantities import split_address
from mindgw.store import audit, fleet, keys, people, rows, users
from mindgw.store.database import Database
from mindgw.store.tables import Key, Org, User
from mindgw_agent import private_files

#: Who does what is done on the server's own disk.
LOCAL = "local"

#: Settings that `init` writes -> the flag that says them.
_FLAGS = {"listen": "--port", "public_url": "--public-url", "tls_listen": "--listen", "database": "--db"} | {
    "tls": "--tls",
    "trusted_proxies": "--trusted-proxies",
}

#: By these a directory is known as a server's: nothing else of what a server keeps comes before one of them.
_MARKS = frozenset({config.FILE, "mindgw.db", *secrets.FILES})
#: What may lie in a directory that nobody uses yet.
_NOTHING = frozenset({"lost+found", lock.FILE})


class Wishes(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator said; None keeps what the settings say."""

    #: Port of the loopback listener.
    port: int | None = None
    #: https://host:port that others reach the server by; empty: nobody does any more.
    public_url: str | None = None
    #: HOST:PORT of the TLS listener.
    tls_listen: str | None = None
    #: "off", CERT:KEY, or empty for the server's own certificate.
    tls: str | None = None
    #: Networks with commas between.
    trusted_proxies: str | None = None
    #: "sqlite" or an address.
    database: str | None = None
    #: Make another admin key, although there is one.
    new_admin_key: bool = False
    #: Data directory of the first server of this database, whose secrets this one shares; None: this is the first.
    secrets_from: Path | None = None


class InitResult(msgspec.Struct, frozen=True, kw_only=True):
    """What `init` has to tell; the key and the token exist nowhere else."""

    data_dir: str
    #: Ends in /v1.
    base_url: str
    #: Root URL for the commands of this machine: that of everybody, unless another CA than the server's own vouches for that.
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
    #: Name of the admin key that was there before, and as much of it as may be shown; empty when one was made.
    admin: str = ""
    #: Why a server that was there already has an empty database now: its own was lost, or another was named.
    emptied: Literal["", "lost", "moved"] = ""

    def __repr__(self) -> str:
        return f"InitResult({self.data_dir})"


async def initialise(directory: Path, wishes: Wishes | None = None, *, now: datetime | None = None) -> InitResult:
    """Makes what is missing and leaves the rest alone, so it may run again, also beside a running server, which reads changed settings
    at its next start. Settings are written once the database they name is there, so a run that fails can be run again with better
    ones. Raises ConfigError, which says what to do."""
    wishes, now = wishes or Wishes(), now or clock.utcnow()
    directory = _claim(directory)
    shared = replica.source(directory, wishes.secrets_from) if wishes.secrets_from else None
    settings, text = _settle(directory, wishes)
    created, known = not (directory / config.FILE).exists(), not secrets.missing(directory)
    database = Database(settings.database_url)
    try:
        if shared is not None and wishes.secrets_from:
            await replica.require(database, shared, wishes.secrets_from)
        _make(directory)
        if wishes.secrets_from:
            replica.copy(wishes.secrets_from, directory)
        emptied = known and await database.revision() is None
        if emptied:
            database.set_leftovers_aside()
            witness.forget(directory)
        backup = await prepare(database, directory)
        own = secrets.obtain(directory)
        database.audit_key = own.audit_key
        renew(settings, own, now)
        _write(directory / config.FILE, text)
        async with database.write() as session:
            key, admin = await _first_people(session, own, now, again=wishes.new_admin_key)
            token = await _invite(session, own, settings, now)
        await witness.note(database, directory)
    finally:
        await database.close()
    return InitResult(
        data_dir=str(directory),
        base_url=f"{settings.root_url}/v1",
        root_url=settings.loopback_url if settings.tls else settings.root_url,
        api_key=key,
        admin=admin,
        join_token=token,
        ca_pem=own.ca_pem.decode(),
        fingerprint=own.fingerprint,
        created=created,
        backup=backup,
        emptied="" if not emptied else "moved" if wishes.database else "lost",
    )


async def _invite(session: AsyncSession, own: Secrets, settings: Config, now: datetime) -> str:
    """A join token for one box."""
    row, token = invitation.mint(own, settings, now)
    await fleet.forget_join_tokens(session, now)
    await fleet.add_join_token(session, row)
    await audit.record(session, LOCAL, "join_token.create", row.id)
    return token


async def new_admin_key(directory: Path, *, now: datetime | None = None) -> InitResult:
    """`initialise` with another admin key, for an operator who has lost the first one; the lost one stays good until it is revoked."""
    return await initialise(directory, Wishes(new_admin_key=True), now=now)


async def prepare(database: Database, directory: Path) -> Path | None:
    """Brings the database to the schema of this release; `serve` calls it too. Returns the copy that was made first. Raises ConfigError
    when a running server still uses the old schema, or when the database is that of another data directory."""
    revision = await database.revision()
    serving = lock.holder(directory)
    if revision is not None and serving not in {None, os.getpid()} and not await database.at_head():
        hint = f"stop it first: kill {serving}" if serving else "stop it first"
        raise ConfigError(f"the database must be migrated, but process {serving} serves from {directory}", hint=hint)
    backup = await database.migrate()
    async with database.read() as session:
        has_keys = (await session.exec(select(Key.id).limit(1))).first() is not None
        missing = secrets.missing(directory)  # now: whoever makes the first key, beside us, has kept its pepper before
        if not missing:
            await replica.refuse_foreign(session, secrets.load(directory))
        elif "pepper" in missing and has_keys:
            hint = (
                f"restore the files of {directory} from a backup, or start over with another --data-dir and an empty database; "
                "--secrets-from DIR makes a second server of the one in DIR"
            )
            raise ConfigError(f"the database has keys, but {directory} has lost their pepper", hint=hint)
    return backup


async def require(database: Database, directory: Path) -> None:
    """Raises ConfigError when nobody has made this database: a server with an empty one in place of its own would refuse every key."""
    if await database.revision() is None:
        hint = f"restore it from a backup; `mindgw init --data-dir {directory}` makes an empty one, without keys, workers and usage"
        raise ConfigError(f"the database {database.name} is missing or empty", hint=hint)


def renew(settings: Config, own: Secrets, now: datetime | None = None) -> bool:
    """Renews the server's certificate when it is due; True when it must be loaded anew. Call it at the start and once a day."""
    names = certificates.names_of(settings.public_url)
    return certificates.obtain_server(settings.directory, own.ca_pem, own.ca_key, names, now)


def _claim(directory: Path) -> Path:
    """The absolute path of a directory that may be ours: it is not there, or empty, or holds what a server keeps. Any other is somebody
    else's, who would be locked out of it."""
    try:
        names = {entry.name for entry in directory.iterdir()}
    except FileNotFoundError:
        return directory.absolute()
    except OSError as error:
        raise _unusable(directory, error) from None
    parts = tuple(f".{mark}." for mark in _MARKS)  # what is left of a run that was killed
    foreign = [name for name in names - _NOTHING if not name.startswith(parts)]
    if foreign and not _MARKS & names:
        hint = "nothing was changed; choose an empty or a new directory with --data-dir"
        raise ConfigError(f"{directory.absolute()} is not empty, and what is in it is not a server's", hint=hint)
    return directory.absolute()


def _make(directory: Path) -> None:
    try:
        private_files.make_directory(directory)
    except OSError as error:
        raise _unusable(directory, error) from None


def _unusable(directory: Path, error: OSError) -> ConfigError:
    return ConfigError(f"cannot make the data directory {directory}: {error.strerror}", hint="choose another with --data-dir")


def _settle(directory: Path, wishes: Wishes) -> tuple[Config, str]:
    """The settings, and the text that their file must get; empty when it stays as it is."""
    file = directory / config.FILE
    text = config.read(file, missing_ok=True)
    current = config.parse(text, str(directory), file=str(file))
    changes = {key: value for key, value in _changes(current, wishes).items() if value != getattr(current, key)}
    wanted = config.parse(text, str(directory), file=str(file), overrides=changes, flags=_FLAGS)
    if not file.exists():
        return wanted, config.dump(wanted)
    if not changes:
        return wanted, ""
    text = settings_edit.amend(text, changes, str(file))
    return config.parse(text, str(directory), file=str(file)), text


def _write(file: Path, text: str) -> None:
    if not text:
        return
    try:
        private_files.write(file, text.encode())
    except OSError as error:
        raise ConfigError(f"cannot write {file}: {error.strerror}", hint="choose another directory with --data-dir") from None


def _changes(current: Config, wishes: Wishes) -> dict[str, str]:
    said = {"public_url": wishes.public_url, "tls_listen": wishes.tls_listen, "database": wishes.database}
    said |= {"tls": wishes.tls, "trusted_proxies": wishes.trusted_proxies}
    changes = {key: value.rstrip("/") for key, value in said.items() if value is not None}
    if wishes.port is not None:
        host, _ = split_address(current.listen)
        changes["listen"] = f"[{host}]:{wishes.port}" if ":" in host else f"{host}:{wishes.port}"
    return changes


async def _first_people(session: AsyncSession, own: Secrets, now: datetime, *, again: bool) -> tuple[str | None, str]:
    """The default organisation, team and admin user, and the first admin key where there is none that is good: the key that was made,
    or None and what the one that is there is called."""
    await replica.mark(session, own, LOCAL)
    org = await people.get_or_create_org(session)
    team = await people.get_or_create_team(session, org.id)
    good = col(Key.role) == "admin", col(Key.revoked_at).is_(None), or_(col(Key.expires_at).is_(None), col(Key.expires_at) > now)
    welcome = or_(col(User.id).is_(None), col(User.state).in_(keys.WELCOME))
    wanted_key = select(Key).join(User, col(Key.user_id) == User.id, isouter=True).where(*good, welcome)
    found = (await session.exec(wanted_key.order_by(col(Key.created_at)).limit(1))).first()
    if found is not None and not again:
        return None, f"{found.name} (mgw_{found.id}_…{found.last4})"
    user = await _administrator(session, org)
    wanted = keys.NewKey(name="admin", org_id=org.id, team_id=team.id, user_id=user.id, role="admin")
    row, text = await keys.create(session, wanted, own.pepper)
    await audit.record(session, LOCAL, "key.create", row.id, name=row.name, role=row.role)
    return text, ""


async def _administrator(session: AsyncSession, org: Org) -> User:
    """Whom the first admin key is for. Whoever can write here is let in, also after somebody has shut everybody out."""
    if org.state != users.ACTIVE:
        rows.change(org, state=users.ACTIVE)
        await audit.record(session, LOCAL, "org.enable", org.id, name=org.name)
    wanted = users.NewUser(org_id=org.id, email=people.ADMIN, name="Administrator", role="admin")
    row, made = await users.obtain(session, wanted)
    if made or (row.state, row.role) != (users.ACTIVE, "admin"):
        if not made:
            rows.change(row, state=users.ACTIVE, role="admin", role_from="")
        await audit.record(session, LOCAL, "user.create" if made else "user.enable", row.id, email=row.email, role=row.role)
    return row
