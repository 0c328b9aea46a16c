"""Every error that leaves a room of this house, and nothing else.

A class exists only where a caller would act differently::

    ReactorError
    ├── ConfigurationError          a setting, a file or a flag is wrong; exit status 2
    │   └── KeyringError            a master key is missing, malformed or the wrong one
    ├── DatabaseError               PostgreSQL refused a statement
    │   ├── DatabaseUnavailableError    no answer, connection lost, shutting down: try again
    │   ├── RowLockedError              somebody holds a row for longer than we wait: try again later
    │   └── ReadOnlyDatabaseError       a standby, or a server that refuses writes: reconnect elsewhere
    ├── MigrationError              the schema is not, or cannot be made, what this program needs
    │   ├── PendingMigrationsError  somebody has yet to run `migrate`: wait, or run it
    │   └── SchemaTooNewError       the schema is newer than this program; exit status 4
    ├── EmbeddedPostgresError       a PostgreSQL of our own would not start or stop
    ├── IllegalTransitionError      the state table has no such step
    ├── UrlRefusedError             the URL policy refuses a URL, a name or an address
    ├── BadHeadersError             a header of a row or of a webhook may not be sent
    ├── SealError                   a sealed value does not open: wrong key, wrong row or altered
    ├── RotationError               a rotation may not begin, or stopped: mend what it names, run it again
    ├── AuditChainError             the audit chain ends in what no holder of the keys wrote: verify it
    ├── NotFoundError               nothing has that id or name
    └── VerificationError           a received request is not what its signature says

Messages are for the person who has to act on them: what was wrong, where, and what would be right. They never
hold a secret, a URL path or a payload.
"""


class ReactorError(Exception):
    """Base of every error that pggit-reactor raises on purpose."""


class ConfigurationError(ReactorError):
    """A setting, a file or a flag is wrong."""


class KeyringError(ConfigurationError):
    """A master key is missing, malformed or not the one that the database was sealed with."""


class DatabaseError(ReactorError):
    """PostgreSQL refused a statement; ``sqlstate`` is its five-letter code where it gave one."""

    def __init__(self, message: str, *, sqlstate: str | None = None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


class DatabaseUnavailableError(DatabaseError):
    """The database did not answer in time, closed the connection or is shutting down."""


class RowLockedError(DatabaseError):
    """Somebody holds a row or a lock for longer than this statement may wait, or a deadlock was broken."""


class ReadOnlyDatabaseError(DatabaseError):
    """The server refuses writes: a standby, or ``default_transaction_read_only``."""


class MigrationError(ReactorError):
    """The schema is not, or cannot be made, what this program needs."""


class PendingMigrationsError(MigrationError):
    """The schema lacks migrations that this program has; nothing else is wrong with it."""


class SchemaTooNewError(MigrationError):
    """The schema was contracted by a newer version; this program would misread it."""


class EmbeddedPostgresError(ReactorError):
    """A PostgreSQL of our own would not be found, start or stop."""


class IllegalTransitionError(ReactorError):
    """The state table has no such step."""


class UrlRefusedError(ReactorError):
    """The URL policy refuses a URL, a name or an address."""


class BadHeadersError(ReactorError):
    """A header that a row or a webhook asks for may not be sent."""


class SealError(ReactorError):
    """A sealed value does not open: wrong key, wrong row, or altered."""


class RotationError(ReactorError):
    """A rotation may not begin now, or stopped on the way; nothing is lost, and it goes on where it stopped."""


class AuditChainError(ReactorError):
    """The audit chain ends in a segment that no holder of the master key wrote."""


class NotFoundError(ReactorError):
    """Nothing has that id or name."""


class VerificationError(ReactorError):
    """A received request is not what its signature says, or too old or too new."""
