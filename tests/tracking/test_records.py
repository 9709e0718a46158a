"""The records of a journal are the lines that they always were, and a run lives as the table says."""

import json
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import pytest

from elbolab.support.errors import UserError
from elbolab.tracking.journal import Journal, read_journal
from elbolab.tracking.keys import FAILED, FINISHED, KILLED, RUNNING
from elbolab.tracking.records import (
    ATTACHED,
    LIFE,
    NEW,
    Attach,
    Begin,
    Checkpoint,
    End,
    File,
    Inputs,
    Metrics,
    Picture,
    Record,
    Tags,
    decode,
    encode,
    end_of_lost,
    is_newest,
    stage_of,
    status_after,
)

RUN = {"name": "vae", "time": 7, "tags": {"mlflow.user": "me"}, "parent": None, "experiment": "Default"}
VALUES, FILES = {"time": 8, "lane": "values"}, {"time": 8, "lane": "files"}
# What elbolab 0.1.0 wrote, key by key in its order.
WRITTEN = [
    (Begin, {**VALUES, "tags": {"elbolab.kind": "train"}, "params": {"model": "vae"}, "run": RUN}),
    (Begin, {**VALUES, "tags": {}, "params": {}, "run": {"id": "a"}, "status": "RUNNING"}),
    (Begin, {**VALUES, "tags": {}, "params": {}, "status": "RUNNING"}),
    (Attach, {**VALUES, "run": {"id": "a", "attached": True}}),
    (Metrics, {**VALUES, "metrics": {"val/elbo": -1.5, "test/log_px": float("nan")}, "step": 2}),
    (Tags, {**VALUES, "tags": {"a": "b"}, "waits": False}),
    (End, {**VALUES, "status": "KILLED", "waits": True}),
    (Inputs, {**FILES, "data": {"name": "mnist5k", "digest": "4f"}}),
    (File, {**FILES, "file": "files/1/config.json", "folder": None}),
    (Picture, {**FILES, "file": "files/2/samples.png", "folder": None, "image": "samples", "step": 1}),
    (Checkpoint, {**FILES, "file": "files/3/best.safetensors", "folder": None, "example": [[[[0]]]]}),
]


@pytest.mark.parametrize(("kind", "written"), WRITTEN)
def test_a_line_of_an_older_version_is_read_and_written_alike(kind: type[Record], written: dict[str, object]):
    line = json.dumps(written).encode() + b"\n"
    record = decode(line)
    assert type(record) is kind
    assert record.lane == written["lane"]
    assert encode(record) == line


@pytest.mark.parametrize("line", ["[1]", "3", "{}", '{"time": 1, "metrics": {}}', '{"tags": {}, "colour": "red"}'])
def test_a_line_that_is_no_record_is_named(tmp_path: Path, line: str):
    (tmp_path / "journal.jsonl").write_text(f"{line}\n")
    with pytest.raises(UserError, match=r"journal\.jsonl cannot be read: .* is no record of a journal; mend it"):
        read_journal(tmp_path)


def test_a_line_that_a_crash_cut_short_makes_way_for_the_next(tmp_path: Path):
    journal = Journal(tmp_path / "run")
    journal.append(Begin(tags={}, params={}))
    journal.close(remove=False)
    file = tmp_path / "run" / "journal.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole + whole[:-3])
    journal = Journal(tmp_path / "run")
    journal.append(Tags(tags={"a": "b"}))
    journal.close(remove=False)
    assert file.read_bytes().startswith(whole)
    assert [type(record) for record in read_journal(tmp_path / "run")] == [Begin, Tags]


def test_records_that_belong_together_are_there_together_or_not_at_all(tmp_path: Path):
    journal = Journal(tmp_path / "run")
    with journal.together():
        for record in (Attach(run={"id": "a", "attached": True}), Tags(tags={"a": "b"})):
            journal.append(record)
            assert read_journal(tmp_path / "run") == journal.records == []
    assert read_journal(tmp_path / "run") == journal.records
    assert [type(record) for record in journal.records] == [Attach, Tags]

    def stopped() -> None:
        with journal.together():
            journal.append(Tags(tags={"c": "d"}))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    journal.append(Tags(tags={"e": "f"}))
    assert [record.tags for record in read_journal(tmp_path / "run") if isinstance(record, Tags)] == [
        {"a": "b"},
        {"e": "f"},
    ]
    journal.close(remove=True)


def test_a_journal_that_one_thread_opens_another_may_close(tmp_path: Path):
    with ThreadPoolExecutor(1) as pool:
        journal = pool.submit(Journal, tmp_path / "run").result()
    journal.close(remove=False)
    Journal(tmp_path / "run").close(remove=True)


SAID: dict[str, list[Record]] = {
    NEW: [],
    ATTACHED: [Attach(run={"id": "a", "attached": True})],
    RUNNING: [Begin(tags={}, params={}, time=1)],
    **{status: [Begin(tags={}, params={}), End(status=status)] for status in (FAILED, FINISHED, KILLED)},
}


@pytest.mark.parametrize(("before", "after"), product(LIFE, list(LIFE)[1:]))
def test_a_journal_takes_what_may_follow_and_nothing_else(tmp_path: Path, before: str, after: str):
    journal = Journal(tmp_path / "run")
    for record in SAID[before]:
        journal.append(record)
    # What is said between two stages changes neither.
    if before != NEW:
        journal.append(Metrics(metrics={"val/elbo": 0.0}, step=1))
    assert stage_of(journal.records) == before
    said = SAID[after][-1]
    if after in LIFE[before]:
        journal.append(said)
        assert stage_of(journal.records) == after
    else:
        with pytest.raises(AssertionError, match=f"{after} cannot follow {before}"):
            journal.append(said)
        assert stage_of(read_journal(tmp_path / "run")) == before
    journal.close(remove=True)


def test_a_run_left_in_the_middle_ends_killed_at_its_last_sign_of_life():
    records = [*SAID[RUNNING], Metrics(metrics={}, step=1, time=5)]
    assert end_of_lost(records) == End(status=KILLED, time=5)
    assert [stage for stage, said in SAID.items() if end_of_lost(said)] == [RUNNING]


def test_an_error_decides_how_a_run_ends():
    errors = (ValueError(), KeyboardInterrupt(), SystemExit(1), MemoryError())
    assert [status_after(error) for error in errors] == [FAILED, KILLED, KILLED, FAILED]


def test_an_end_holds_unless_the_run_was_ended_later():
    end = End(status=KILLED, time=5)
    found = [is_newest(end, *there) for there in ((RUNNING, 9), (FINISHED, 9), (FINISHED, 4), (FINISHED, None))]
    assert found == [True, False, True, True]
