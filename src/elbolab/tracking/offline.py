"""What earlier processes left in the folder ``unfinished``: trainings to resume, and records that are not sent."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from mlflow.utils.mlflow_tags import MLFLOW_RUN_NAME

from elbolab.support.errors import UserError, reason
from elbolab.tracking.journal import Journal, journals, read_journal, read_state
from elbolab.tracking.keys import KIND
from elbolab.tracking.meant_runs import Named, meant, one_of
from elbolab.tracking.mlflow_writer import MlflowWriter, Package
from elbolab.tracking.records import UNDONE, Attach, Begin, Record, end_of_lost, stage_of

UNFINISHED = Path("unfinished")
OUTDATED = "run {} has a newer evaluation; the rest of an older one is dropped"


def find_unfinished(asked: str) -> Path | None:
    """The folder of the unfinished training that is meant, as ``meant`` says; None where there is none.

    A run that the server has not made goes by the id of its journal. Raises UserError where there is none such among
    those that can be read, and others cannot, or where several are meant.
    """
    unreadable = None
    trainings: dict[Named, Path] = {}
    for folder in reversed(journals(UNFINISHED.absolute())):
        try:
            if _is_training(folder):
                trainings |= dict.fromkeys(_names(folder), folder)
        except UserError as error:
            unreadable = error
    found = {trainings[named]: named for named in meant(asked, trainings)}
    if not found and unreadable is not None:
        # It may be that of the run.
        raise unreadable
    return trainings[one_of(asked, list(found.values()))] if found else None


def free_trainings(tags: Mapping[str, str]) -> Iterator[tuple[str, dict[str, str]]]:
    """The unfinished trainings that began with these tags and that no process is at: what each is resumed by, and its
    parameters; the newest first.
    """
    for folder in reversed(journals(UNFINISHED.absolute())):
        # One that cannot be read, or that another process holds, is left alone.
        with suppress(UserError):
            params, own = begun(folder)
            if tags.items() <= own.items() and _is_training(folder):
                Journal(folder).close(remove=False)
                yield read_state(folder).get("run_id", folder.name), params


def _names(folder: Path) -> list[Named]:
    """What an unfinished training goes by."""
    (params, tags), run_id = begun(folder), read_state(folder).get("run_id")
    ids = [folder.name, run_id] if run_id else [folder.name]
    return [Named(one, tags.get(MLFLOW_RUN_NAME, ""), params.get("model")) for one in ids]


def begun(folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """The parameters and the tags with which an unfinished run began, empty where it had not begun.

    Raises UserError where its journal cannot be read.
    """
    first = next((record for record in read_journal(folder) if isinstance(record, Begin)), None)
    return ({}, {}) if first is None else (first.params, first.tags)


def send_unfinished(package: Package, run_id: str | None = None) -> list[str]:
    """Send what earlier processes could not, of all runs or of one, models by ``package``; returns a line for each.

    A run whose process is gone and wrote no end is KILLED; its training can be resumed all the same. Raises UserError
    where some is left.
    """
    lines, problems = [], []
    for folder in journals(UNFINISHED.absolute()):
        try:
            if run_id not in (None, read_state(folder).get("run_id") or _given_id(read_journal(folder))):
                continue
            journal = Journal(folder)
        except UserError as error:
            problems.append(str(error))
            continue
        writer = MlflowWriter(journal, package)
        end = end_of_lost(journal.records)
        if end is not None and not _is_begun_again(journal):
            journal.append(end)
        count = writer.left()
        try:
            if count:
                writer.send()
                lines.append(
                    OUTDATED.format(writer.run_id)
                    if writer.is_outdated
                    else f"run {writer.run_id}: {count} records sent"
                )
        except Exception as error:
            problems.append(f"{folder}: {writer.left()} records are not sent: {reason(error)}")
        finally:
            journal.close(is_done_with(journal, writer))
    if problems:
        raise UserError("\n".join([*lines, *problems]))
    return lines


def _is_begun_again(journal: Journal) -> bool:
    """Whether a later call works on the same run, whose end is then in the journal of that call."""
    run_id = journal.state.get("run_id") or _given_id(journal.records)
    for other in set(journals(journal.folder.parent)) - {journal.folder}:
        with suppress(UserError):
            records = read_journal(other)
            if records and isinstance(records[0], Begin) and _given_id(records) == run_id is not None:
                return True
    return False


def _given_id(records: Sequence[Record]) -> str | None:
    """Id of the run that a call has begun again or adds to by its id; None of a run that is new."""
    first = records[0] if records else None
    run = first.run if isinstance(first, Begin | Attach) else None
    return run.get("id") if run and "otherwise" not in run else None


def is_done_with(journal: Journal, writer: MlflowWriter) -> bool:
    """Whether nothing in the folder is needed any more: all is sent, and there is no training to resume."""
    return not writer.left() and not can_be_resumed(journal)


def can_be_resumed(journal: Journal) -> bool:
    """Whether a journal is that of a training that has not finished."""
    return stage_of(journal.records) in UNDONE and _is_training(journal.folder)


def _is_training(folder: Path) -> bool:
    return begun(folder)[1].get(KIND) == "train"
