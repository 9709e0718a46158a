"""What earlier processes left in the folder ``unfinished``: trainings to go on with, and what is still to be sent."""

from contextlib import suppress
from pathlib import Path

from elbolab.support.errors import UserError, reason
from elbolab.tracking.journal import Journal, journals, peek, read_journal
from elbolab.tracking.keys import FINISHED, KILLED, KIND, RUNNING, VALUES
from elbolab.tracking.mlflow_writer import MlflowWriter, Package

UNFINISHED = Path("unfinished")


def find_unfinished(run_id: str) -> Path | None:
    """The folder of an unfinished training, by the id of its run or of its journal; None where there is none.

    Raises UserError where there is none such among those that can be read, and others cannot.
    """
    unreadable = None
    for folder in journals(UNFINISHED.absolute()):
        try:
            if run_id in (folder.name, peek(folder).get("run_id")) and is_training(folder):
                return folder
        except UserError as error:
            unreadable = error
    if unreadable is not None:
        # It may be the run.
        raise unreadable
    return None


def begun(folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """The parameters and the tags with which an unfinished run began; none where it did not get so far."""
    first = next((record for record in read_journal(folder) if "params" in record), {})
    return first.get("params", {}), first.get("tags", {})


def send_unfinished(package: Package, run_id: str | None = None) -> list[str]:
    """Send what earlier processes could not, of all runs or of one, models by ``package``; returns a line for each.

    A run whose process is gone without a word ends as KILLED; it can be gone on with all the same. Raises UserError
    where some is left.
    """
    lines, problems = [], []
    for folder in journals(UNFINISHED.absolute()):
        try:
            if run_id not in (None, peek(folder).get("run_id")):
                continue
            journal = Journal(folder)
        except UserError as error:
            problems.append(str(error))
            continue
        writer = MlflowWriter(journal, package)
        if is_open(journal) and not _is_taken_up(journal):
            # The last sign of life was then, and a later call that took up the run may have ended it since.
            journal.append(lane=VALUES, status=KILLED, waits=True, time=journal.records[-1].get("time", 0))
        count = writer.left()
        try:
            if count:
                writer.send()
                lines.append(f"run {writer.run_id}: {count} records sent")
        except Exception as error:
            problems.append(f"{folder}: {writer.left()} records are not sent: {reason(error)}")
        finally:
            journal.close(is_done_with(journal, writer))
    if problems:
        raise UserError("\n".join([*lines, *problems]))
    return lines


def is_open(journal: Journal) -> bool:
    """Whether the run began here and nothing was said of its end."""
    return (
        bool(journal.records)
        and "attached" not in journal.records[0]["run"]
        and last_status(journal) in (None, RUNNING)
    )


def _is_taken_up(journal: Journal) -> bool:
    """Whether another journal is of the same run, whose end is then said there."""
    run_id = journal.state.get("run_id") or journal.records[0]["run"].get("id")
    for other in journals(journal.folder.parent):
        with suppress(UserError):
            first = next(iter(read_journal(other)), {}).get("run", {})
            if other != journal.folder and "attached" not in first and first.get("id") == run_id is not None:
                return True
    return False


def last_status(journal: Journal) -> str | None:
    """What the run was last said to be; None where it began and nothing more is known."""
    return next((record["status"] for record in reversed(journal.records) if "status" in record), None)


def is_done_with(journal: Journal, writer: MlflowWriter) -> bool:
    """Whether nothing in the folder is needed any more: all is sent, and there is nothing to go on with."""
    return not writer.left() and (last_status(journal) == FINISHED or not is_training(journal.folder))


def is_training(folder: Path) -> bool:
    return begun(folder)[1].get(KIND) == "train"
