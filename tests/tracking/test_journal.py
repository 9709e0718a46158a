"""The journal on local disk and what becomes of it: no process, no damage and no delay of another touches it."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import mlflow
import pytest

from elbolab.registry.packaging import log_model
from elbolab.support.errors import UserError
from elbolab.tracking import journal as journals
from elbolab.tracking import mlflow_reader
from elbolab.tracking import run as tracking
from elbolab.tracking.journal import Journal
from elbolab.tracking.keys import FAILED, KIND, PARENT, RUNNING
from elbolab.tracking.mlflow_writer import MlflowWriter, WaitingError
from elbolab.tracking.offline import find_unfinished, send_unfinished
from elbolab.tracking.records import Begin, End, KnownRun, NewRun
from elbolab.tracking.uploader import Uploader


@pytest.fixture(autouse=True)
def unfinished(store: Path) -> Path:
    return store / "unfinished"


def begin(folder: Path, kind: str, run: NewRun | KnownRun | None = None) -> Journal:
    """The journal of a run that a process has begun and not ended."""
    journal = Journal(folder)
    journal.append(Begin(run=run or tracking._new_run(kind), tags={KIND: kind}, params={}))
    return journal


def sent(journal: Journal) -> str:
    """The id of the run of a journal that is sent and whose process is then gone."""
    writer = MlflowWriter(journal)
    writer.send()
    journal.close(remove=False)
    assert writer.run_id is not None
    return writer.run_id


def status(run_id: str) -> str:
    return mlflow_reader.get_run(run_id).status


def come_and_go(folder: Path, number: int) -> None:
    for again in range(200):
        Journal(folder / f"{number}-{again}").close(remove=True)


def test_journals_come_and_go_together_in_one_folder(unfinished: Path):
    """Whoever is the last removes the folder of all, in which others are just about to make theirs."""
    with ProcessPoolExecutor(4, mp_context=get_context("fork")) as pool:
        list(pool.map(come_and_go, [unfinished] * 4, range(4)))
    assert not unfinished.exists()


def test_a_folder_half_removed_is_no_run_and_is_removed(unfinished: Path, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        # What a kill in the middle leaves.
        patch.setattr(journals, "_remove", lambda folder: (folder / "journal.jsonl").unlink())
        begin(unfinished / "done", "train").close(remove=True)
    assert list(unfinished.iterdir())
    assert send_unfinished(log_model) == []
    assert not unfinished.exists()


@pytest.mark.parametrize(("file", "content"), [("journal.jsonl", b"nonsense\n"), ("state.json", b'{"run_id')])
def test_a_folder_that_cannot_be_read_is_named_and_stops_no_other(unfinished: Path, file: str, content: bytes):
    broken = begin(unfinished / "broken", "train")
    broken.close(remove=False)
    (unfinished / "broken" / file).write_bytes(content)
    run_id = sent(begin(unfinished / "whole", "train"))
    assert find_unfinished(run_id) == unfinished / "whole"
    with pytest.raises(UserError, match=rf"broken/{file} cannot be read: .*; mend it, or move .*broken away"):
        find_unfinished("broken")
    for _ in range(2):
        with pytest.raises(UserError, match=rf"broken/{file} cannot be read"):
            send_unfinished(log_model)
    assert status(run_id) == "KILLED"
    assert (unfinished / "broken" / file).read_bytes() == content


def test_a_study_that_a_later_call_finished_stays_finished(unfinished: Path):
    run_id = sent(begin(unfinished / "killed", "study"))
    with tracking.start_run("study", "study", {}, {}, run_id):
        pass
    assert status(run_id) == "FINISHED"
    assert send_unfinished(log_model) == [f"run {run_id}: 1 records sent"]
    assert status(run_id) == "FINISHED"
    assert not unfinished.exists()


def test_a_study_that_a_later_call_is_at_is_left_to_it(unfinished: Path):
    run_id = sent(begin(unfinished / "killed", "study"))
    with tracking.start_run("study", "study", {}, {}, run_id):
        with pytest.raises(UserError, match="in use by another process"):
            send_unfinished(log_model)
        assert status(run_id) == "RUNNING"
    assert status(run_id) == "FINISHED"
    assert not unfinished.exists()


def test_an_end_that_is_sent_late_is_not_taken_for_the_last_one(unfinished: Path):
    late = begin(unfinished / "late", "study")
    MlflowWriter(late).send()
    late.append(End(status=FAILED))
    late.close(remove=False)
    run_id = late.state["run_id"]
    time.sleep(0.01)
    with tracking.start_run("study", "study", {}, {}, run_id):
        pass
    send_unfinished(log_model)
    assert status(run_id) == "FINISHED"


def test_a_study_killed_twice_is_killed(unfinished: Path):
    run_id = sent(begin(unfinished / "first", "study"))
    sent(begin(unfinished / "second", "study", {"id": run_id}))
    send_unfinished(log_model)
    assert status(run_id) == "KILLED"
    assert not unfinished.exists()


def test_a_run_waits_for_the_one_above_it_and_is_found_under_it(unfinished: Path):
    # The names are in the other order.
    begin(unfinished / "b", "main").close(remove=False)
    below = begin(unfinished / "a", "compare", {**tracking._new_run("compare"), "parent": "b"})
    with pytest.raises(WaitingError, match=f"waits in {unfinished / 'b'}"):
        MlflowWriter(below).send()
    below.close(remove=False)
    assert len(send_unfinished(log_model)) == 2
    runs = {run.data.tags[KIND]: run for run in mlflow.MlflowClient().search_runs(["0"])}
    assert runs["compare"].data.tags[PARENT] == runs["main"].info.run_id


def test_one_run_is_left_where_an_answer_was_lost_and_there_are_two(unfinished: Path, monkeypatch: pytest.MonkeyPatch):
    create = mlflow.MlflowClient.create_run

    def twice(*arguments: object) -> object:
        create(*arguments)  # pyright: ignore[reportArgumentType]
        return create(*arguments)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(mlflow.MlflowClient, "create_run", twice)
    run_id = sent(begin(unfinished / "one", "study"))
    assert [run.info.run_id for run in mlflow.MlflowClient().search_runs(["0"])] == [run_id]


def test_what_comes_late_to_one_who_was_stopped_changes_nothing(unfinished: Path, monkeypatch: pytest.MonkeyPatch):
    journal = begin(unfinished / "one", "study")
    known = mlflow.MlflowClient().create_run("0").info.run_id
    journal.update_state(run_id=known)
    journal.append(Begin(tags={"more": "yes"}, params={}, status=RUNNING))
    writer, asked, answer = MlflowWriter(journal), threading.Event(), threading.Event()
    batches: list[object] = []

    def send(batch: object) -> None:
        batches.append(batch)
        asked.set()
        answer.wait()

    monkeypatch.setattr(writer, "_values", send)
    uploader = Uploader(journal, writer)
    asked.wait()
    uploader.stop()
    journal.close(remove=False)
    successor = Journal(unfinished / "one")
    answer.set()
    uploader._thread.join()
    assert len(batches) == 1
    assert journals.read_state(unfinished / "one") == successor.state == {"run_id": known}


class Trickle:
    """A writer that is never done, though each moment one more record is sent."""

    run_id = "known"

    def __init__(self, journal: Journal) -> None:
        self._journal, self._left = journal, 300

    def left(self) -> int:
        return self._left

    def send(self, stopped: Callable[[], bool]) -> None:
        time.sleep(0.02)
        with self._journal.changed:
            self._left -= 1
            self._journal.changed.notify_all()


def test_a_server_that_takes_ever_one_more_is_not_waited_for_without_end(unfinished: Path):
    journal = Journal(unfinished / "one")
    trickle = Trickle(journal)
    uploader = Uploader(journal, trickle)  # pyright: ignore[reportArgumentType]
    began = time.monotonic()
    uploader.wait(0.2, lambda: False)
    assert time.monotonic() - began > 1.5
    assert trickle.left() > 0
    uploader.stop()
