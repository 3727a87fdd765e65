"""SQL conditions over a dataset's rows, run by DuckDB with no access to files or the network.

A condition is what may stand behind WHERE: columns, operators, functions whose value follows from
the row alone. It is parsed before anything runs, so that it may also be put into a query on a
connection that reads files: it holds no subquery and no function that names one.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from schemas.errors import ConfigError
from schemas.records import TRAIN_SCHEMA

ROWS = "samples"
"""What the rows are called, where a condition names columns as `samples.key`."""

MEMORY_LIMIT = "2GB"

REFUSED_CLASSES = {
    "SUBQUERY": "a subquery",
    "WINDOW": "a window function",
    "PARAMETER": "a parameter",
    "STAR": "*",
}


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition that was checked: it may be put into a query in parentheses."""

    text: str
    columns: tuple[str, ...]
    """Those that it reads, in the order of the schema."""


def checked_condition(
    text: str, schema: pa.Schema = TRAIN_SCHEMA, flag: str = "--where"
) -> Condition:
    """Returns a condition on rows of a schema, ready to run.

    Args:
        flag: how a message calls the condition.

    Raises:
        ConfigError: if it is no condition, or its value does not follow from a row alone.
    """
    with closed_connection() as connection:
        tree = _parsed(connection, text, flag)
        lambdas = set(_lambda_names(tree))
        named = {str(node["column_names"][0]) for node in _nodes(tree, "COLUMN_REF")}
        if ROWS in named:
            named |= {str(node["column_names"][-1]) for node in _nodes(tree, "COLUMN_REF")}
        known = {name.lower(): name for name in schema.names}
        _refuse_unsteady(connection, tree, named - lambdas, known, flag)
        columns = {known[name.lower()] for name in named if name.lower() in known}
        connection.register(ROWS, schema.empty_table())
        try:
            found = connection.sql(f"SELECT (\n{text}\n) AS found FROM {ROWS}")
            if str(found.types[0]) != "BOOLEAN":
                raise ConfigError(
                    f"{flag} {text!r} is of type {found.types[0]}: give what is true or false, "
                    "such as clip_score > 0.3"
                )
            connection.execute(f"SELECT 1 FROM {ROWS} WHERE (\n{text}\n)")
        except duckdb.Error as error:
            raise _refusal(text, schema, error, flag) from error
    return Condition(text, tuple(name for name in schema.names if name in columns))


class ConditionRunner:
    """Tells which rows fulfil a condition, table by table; close it when done."""

    def __init__(self, condition: Condition) -> None:
        self._condition = condition
        self._connection = closed_connection()

    def matches(self, rows: pa.Table) -> NDArray[np.bool_]:
        """Returns whether each row fulfils the condition, (n,); unknown (NULL) counts as no.

        Raises:
            ConfigError: if the condition cannot be computed for one of them.
        """
        # A table without columns has no rows for DuckDB.
        names = self._condition.columns or (rows.schema.names[0],)
        self._connection.register(ROWS, rows.select(names))
        try:
            found = self._connection.sql(
                f"SELECT coalesce((\n{self._condition.text}\n), false) AS found FROM {ROWS}"
            ).to_arrow_table()
        except duckdb.Error as error:
            raise _refusal(self._condition.text, rows.schema, error, "--where") from error
        finally:
            self._connection.unregister(ROWS)
        return np.asarray(found["found"].to_numpy(), np.bool_)

    def close(self) -> None:
        """Lets go of the database."""
        self._connection.close()


def closed_connection(readable: Sequence[str] = ()) -> duckdb.DuckDBPyConnection:
    """Returns a database in memory that reaches no file, network or variable of this program.

    Args:
        readable: local folders whose files it may read all the same.
    """
    connection = duckdb.connect(":memory:", config={"threads": 1})
    settings = {
        "autoinstall_known_extensions": "false",
        "autoload_known_extensions": "false",
        "python_enable_replacements": "false",
        "TimeZone": "'UTC'",
        "memory_limit": f"'{MEMORY_LIMIT}'",
        "temp_directory": "''",
        "allowed_directories": f"[{', '.join(map(_quoted, readable))}]",
        "enable_external_access": "false",
        "lock_configuration": "true",
    }
    for name, value in settings.items():
        connection.execute(f"SET {name} = {value}")
    return connection


def _quoted(text: str) -> str:
    """Returns a text as SQL writes it."""
    return "'" + text.replace("'", "''") + "'"


def _parsed(connection: duckdb.DuckDBPyConnection, text: str, flag: str) -> dict[str, Any]:
    """Returns the tree of a condition.

    What closes a bracket that it did not open is found without brackets around it, what goes on
    behind the condition with them.
    """
    if not text.strip():
        raise ConfigError(f'{flag} is empty: give a condition, such as "width >= 256"')
    for query in (f"SELECT 1 FROM {ROWS} WHERE \n{text}\n", f"SELECT (\n{text}\n)"):
        row = connection.execute("SELECT json_serialize_sql(?::VARCHAR)", [query]).fetchone()
        found: dict[str, Any] = json.loads(row[0]) if row else {}
        if found.get("error", True) or len(found["statements"]) != 1:
            said = str(found.get("error_message", "it is no condition")).splitlines()[0]
            raise ConfigError(
                f"{flag} {text!r} is no SQL condition: {said}. Give what stands behind WHERE, "
                "such as \"alignment_level >= 6 and width >= 256 and caption ilike '%cat%'\""
            )
    return found


def _refuse_unsteady(
    connection: duckdb.DuckDBPyConnection,
    tree: dict[str, Any],
    named: set[str],
    known: dict[str, str],
    flag: str,
) -> None:
    """Raises `ConfigError` for what is not computed from the row alone."""
    for kind, words in REFUSED_CLASSES.items():
        if any(True for _ in _nodes(tree, kind)):
            raise ConfigError(f"{flag} may not hold {words}: it is asked of each row by itself")
    functions = {str(node["function_name"]).lower() for node in _nodes(tree, "FUNCTION")}
    # CURRENT_DATE and its kin are written as columns are.
    functions |= {name.lower() for name in named if name.lower() not in known}
    rows = connection.execute(
        "SELECT DISTINCT function_name FROM duckdb_functions() "
        "WHERE function_type = 'scalar' AND stability <> 'CONSISTENT'"
    ).fetchall()
    # Of + and -, only sums of moments depend on the session, by its time zone, which is UTC.
    of_session = {str(name) for (name,) in rows if str(name).isidentifier()}
    unsteady = (of_session - UNBOUNDED | SPECIAL_VALUES) & functions
    if unsteady:
        raise ConfigError(
            f"{flag} may not use {', '.join(sorted(unsteady))}: the same rows must be chosen "
            "whenever the command is run"
        )
    if functions & UNBOUNDED:
        raise ConfigError(
            f"{flag} may not use {', '.join(sorted(functions & UNBOUNDED))}: it may take any "
            "memory or time, and the system would kill the program"
        )


SPECIAL_VALUES = {
    "current_catalog",
    "current_database",
    "current_date",
    "current_role",
    "current_schema",
    "current_time",
    "current_timestamp",
    "current_user",
    "getvariable",
    "localtime",
    "localtimestamp",
    "session_user",
    "user",
}
"""Of SQL, written without brackets, and of a session."""

UNBOUNDED = {
    "array_resize",
    "generate_series",
    "list_resize",
    "lpad",
    "pg_sleep",
    "range",
    "repeat",
    "rpad",
    "sleep_ms",
}
"""Functions that make a value of any size of small ones, past DuckDB's limit of memory, or wait."""


def _nodes(tree: Any, kind: str) -> Iterator[dict[str, Any]]:
    """Yields the nodes of a class, at any depth."""
    if isinstance(tree, dict):
        if tree.get("class") == kind:
            yield tree
        for value in tree.values():
            yield from _nodes(value, kind)
    elif isinstance(tree, list):
        for value in tree:
            yield from _nodes(value, kind)


def _lambda_names(tree: Any) -> Iterator[str]:
    """Yields what the parameters of lambda functions are called."""
    for node in _nodes(tree, "LAMBDA"):
        yield from (str(name) for name in node.get("named_parameters", ()))
        for found in _nodes(node.get("lhs"), "COLUMN_REF"):
            yield str(found["column_names"][0])


def _refusal(text: str, schema: pa.Schema, error: duckdb.Error, flag: str) -> ConfigError:
    said = str(error).splitlines()[0].rstrip(".!")
    return ConfigError(
        f"{flag} {text!r} cannot be computed: {said}. The columns are "
        f"{', '.join(schema.names)}; a text stands in single quotes; one that may be no number "
        "takes try_cast"
    )
