"""Whose a database is: several programs count the versions of their tables in a table of the same name."""

from sqlalchemy import create_engine, inspect

from elbolab.support.errors import UserError


def refuse_foreign(url: str, own: str, program: str) -> None:
    """Raise UserError where a database has the tables of another program than that to which a table ``own`` belongs.

    Raises what SQLAlchemy raises where the database cannot be asked, and ImportError where its driver is missing.
    """
    engine = create_engine(url)
    try:
        tables = inspect(engine).get_table_names()
    finally:
        engine.dispose()
    # Alembic's, of which Optuna and MLflow would each take the other's version for its own.
    if "alembic_version" in tables and own not in tables:
        raise UserError(f"the database {url} is that of another program than {program}; name another one")
