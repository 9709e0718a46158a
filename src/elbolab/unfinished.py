"""What earlier processes left in the folder ``unfinished``: trainings to go on with, and what is still to be sent."""

from contextlib import suppress
from pathlib import Path

from elbolab.delivery import RUNNING, VALUES, Delivery
from elbolab.errors import UserError, reason
from elbolab.records import KIND
from elbolab.spool import Spool, peek, read_journal, spools

UNFINISHED = Path("unfinished")
FINISHED, KILLED = "FINISHED", "KILLED"


def find_unfinished(run_id: str) -> Path | None:
    """The folder of an unfinished training, by the id of its run or of its spool; None where this folder has none such.

    Raises UserError where there is none such among those that can be read, and others cannot.
    """
    unreadable = None
    for folder in spools(UNFINISHED.absolute()):
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


def send_unfinished(run_id: str | None = None) -> list[str]:
    """Send what earlier processes could not, of all runs or of one; returns a line for each, and raises UserError where
    some is left.

    A run whose process is gone without a word ends as KILLED; it can be gone on with all the same.
    """
    lines, problems = [], []
    for folder in spools(UNFINISHED.absolute()):
        try:
            if run_id not in (None, peek(folder).get("run_id")):
                continue
            spool = Spool(folder)
        except UserError as error:
            problems.append(str(error))
            continue
        delivery = Delivery(spool)
        if is_open(spool) and not _is_taken_up(spool):
            # The last sign of life was then, and a later call that took up the run may have ended it since.
            spool.append(lane=VALUES, status=KILLED, waits=True, time=spool.records[-1].get("time", 0))
        count = delivery.left()
        try:
            if count:
                delivery.send()
                lines.append(f"run {delivery.run_id}: {count} records sent")
        except Exception as error:
            problems.append(f"{folder}: {delivery.left()} records are not sent: {reason(error)}")
        finally:
            spool.close(is_done_with(spool, delivery))
    if problems:
        raise UserError("\n".join([*lines, *problems]))
    return lines


def is_open(spool: Spool) -> bool:
    """Whether the run began here and nothing was said of its end."""
    return bool(spool.records) and "attached" not in spool.records[0]["run"] and last_status(spool) in (None, RUNNING)


def _is_taken_up(spool: Spool) -> bool:
    """Whether another spool is of the same run, whose end is then said there."""
    run_id = spool.state.get("run_id") or spool.records[0]["run"].get("id")
    for other in spools(spool.folder.parent):
        with suppress(UserError):
            first = next(iter(read_journal(other)), {}).get("run", {})
            if other != spool.folder and "attached" not in first and first.get("id") == run_id is not None:
                return True
    return False


def last_status(spool: Spool) -> str | None:
    """What the run was last said to be; None where it began and nothing more is known."""
    return next((record["status"] for record in reversed(spool.records) if "status" in record), None)


def is_done_with(spool: Spool, delivery: Delivery) -> bool:
    """Whether nothing in the folder is needed any more: all is sent, and there is nothing to go on with."""
    return not delivery.left() and (last_status(spool) == FINISHED or not is_training(spool.folder))


def is_training(folder: Path) -> bool:
    return begun(folder)[1].get(KIND) == "train"
