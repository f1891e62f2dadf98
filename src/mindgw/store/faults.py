"""Which failures of a database are the fault of what it was given: trying the same again will fail again."""

from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError, StatementError

#: What nothing but a database raises.
OF_DATABASES = SQLAlchemyError
#: What a write may raise, the driver's own complaints about a value included.
FAULTS = (OF_DATABASES, ValueError, TypeError, OverflowError)

#: Classes of SQLSTATE: data exception, integrity constraint violation.
_STATES = ("22", "23")


def in_the_data(wrong: Exception) -> bool:
    """True when a value cannot be stored; False when the database is away, busy, full or not what we think it is."""
    if isinstance(wrong, DataError | IntegrityError):
        return True
    if isinstance(wrong, DBAPIError):
        # asyncpg: the server's complaint has a state, its own is a ValueError underneath
        state = str(getattr(wrong.orig, "sqlstate", None) or "")
        cause = wrong.orig.__cause__ if wrong.orig is not None else None
        return state.startswith(_STATES) or isinstance(cause, ValueError | OverflowError)
    if isinstance(wrong, StatementError):  # a value that could not even be bound
        return isinstance(wrong.orig, ValueError | TypeError | OverflowError)
    return isinstance(wrong, ValueError | TypeError | OverflowError)
