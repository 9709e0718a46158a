"""A report says what it took, keeps what it would replace, and leaves out runs whose files are lost, with a note."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
from invented_runs import Store, reproduce, served

from elbolab.config.schema import CompareConfig
from elbolab.report.compare import compare
from elbolab.support.errors import UserError
from elbolab.tracking import artifacts
from elbolab.tracking.mlflow_reader import get_run


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tables: Path) -> Iterator[pytest.MonkeyPatch]:
    """A fresh store that this module's runs are logged to."""
    with served(tmp_path_factory.mktemp("server"), tables) as patch:
        yield patch


@pytest.fixture
def store(server: pytest.MonkeyPatch, tmp_path: Path) -> Store:
    """An empty experiment of its own on the module's store."""
    name = f"toy-{tmp_path.name}"
    server.setenv("MLFLOW_EXPERIMENT_NAME", name)
    return Store(tmp_path, name)


def trained(store: Store, model: str = "vae", **params: object) -> str:
    run = store.train(model, sigma=0.4, epochs=2, pictures=False, **params)  # pyright: ignore[reportArgumentType]
    store.evaluate(run, model)
    return run


def files_of(run: str) -> Path:
    return artifacts.read(run, "evaluation", lambda folder: folder)


def runs_in(folder: Path) -> set[str]:
    return set(pd.read_csv(folder / "runs.csv")["run"])


def test_a_small_try_replaces_no_report_of_other_runs(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "report"
    good = {trained(store), trained(store, "ppca")}
    compare(CompareConfig(out=out))
    assert "kept" not in capsys.readouterr().err
    (out / "mine.txt").write_text("a note")
    before = {path.name: path.read_text() for path in out.iterdir()}
    small = trained(store, data="npz:small", digest="0123456789abcdef")
    page = compare(CompareConfig(out=out))
    said = capsys.readouterr().err
    assert f"compared on npz:small (digest 01234567): vae {small[:8]}" in said
    assert f"the report of other runs that was in {out} is kept in {out}/earlier-1" in said
    assert page == out / "index.html"
    assert runs_in(out) == {small}
    kept = {path.name: path.read_text() for path in (out / "earlier-1").iterdir()}
    assert kept == {name: text for name, text in before.items() if name != "mine.txt"}
    assert runs_in(out / "earlier-1") == good
    # Nothing that is kept is replaced in its turn.
    compare(CompareConfig(out=out, run=tuple(good)))
    assert runs_in(out / "earlier-1") == good
    assert runs_in(out / "earlier-2") == {small}


def test_a_report_that_shows_all_of_the_one_before_takes_its_place(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "report"
    first = trained(store)
    for more in (lambda: None, lambda: trained(store, seed=1), lambda: trained(store, "ppca")):
        more()
        compare(CompareConfig(out=out))
    assert len(runs_in(out)) == 3
    assert not list(out.glob("earlier-*"))
    said = capsys.readouterr().err
    assert f"vae {first[:8]}\n" in said
    assert " and 1 more seed, ppca" in said


@pytest.mark.parametrize("spoilt", ["no list of runs", "another list"])
def test_a_report_of_which_the_runs_are_not_known_is_kept(store: Store, tmp_path: Path, spoilt: str):
    trained(store)
    (tmp_path / "index.html").write_text("my own page")
    if spoilt == "another list":
        (tmp_path / "runs.csv").write_text("a,b\n1,2\n")
    compare(CompareConfig(out=tmp_path))
    assert (tmp_path / "earlier-1" / "index.html").read_text() == "my own page"


def a_folder_stands_there(out: Path) -> None:
    (out / "index.html" / "inside").mkdir(parents=True)
    shutil.copy(out.parent / "first" / "runs.csv", out)


def it_is_a_file(out: Path) -> None:
    out.write_text("")


def it_is_a_link_to_nowhere(out: Path) -> None:
    out.symlink_to(out.parent / "no" / "such" / "folder")


def it_is_too_long(out: Path) -> None:
    pass


@pytest.mark.parametrize(
    "spoil",
    [a_folder_stands_there, it_is_a_file, it_is_a_link_to_nowhere, it_is_too_long],
    ids=lambda one: one.__name__,
)
def test_a_folder_that_cannot_be_written_is_one_line(store: Store, tmp_path: Path, spoil: Callable[[Path], None]):
    trained(store)
    compare(CompareConfig(out=tmp_path / "first"))
    out = tmp_path / ("long" * 100 if spoil is it_is_too_long else "out")
    spoil(out)
    with pytest.raises(UserError, match=r"^out='.*(cannot be written: .*; name another folder|should )"):
        compare(CompareConfig.parse({"out": out}))


def remove(run: str) -> None:
    shutil.rmtree(files_of(run).parent)


def remove_evaluation(run: str) -> None:
    shutil.rmtree(files_of(run))


def truncate(run: str) -> None:
    file = files_of(run) / "likelihood.parquet"
    file.write_bytes(file.read_bytes()[:100])


def fill_with_garbage(run: str) -> None:
    (files_of(run) / "likelihood.parquet").write_text("no table")


@pytest.mark.parametrize("spoil", [remove, remove_evaluation, truncate, fill_with_garbage])
def test_a_seed_whose_files_are_lost_is_left_out_with_a_note(
    store: Store, tmp_path: Path, spoil: Callable[[str], None], capsys: pytest.CaptureFixture[str]
):
    first, second, third = (trained(store, seed=seed) for seed in range(3))
    spoil(first)
    html = compare(CompareConfig(out=tmp_path / "report")).read_text()
    assert runs_in(tmp_path / "report") == {second, third}
    assert f"elbolab: left out of the report: {'artifact' if spoil in (truncate, fill_with_garbage) else 'run'}" in (
        capsys.readouterr().err
    )
    note = f"A run of vae, {first[:8]}, since files of its evaluation are not there any more, or cannot be read."
    assert re.findall(r'<p class="missing"><b>Left out.</b> (.*?) Run <code>(.*?)</code>', html) == [
        (note, f"elbolab evaluate {first}")
    ]
    assert note in (tmp_path / "report" / "report.md").read_text()
    # Asked for by its id it is an error.
    with pytest.raises(UserError, match=first):
        compare(CompareConfig(out=tmp_path / "named", run=(first, second)))
    assert not (tmp_path / "named").exists()


def test_where_the_newest_is_lost_the_next_is_shown(store: Store, tmp_path: Path):
    older, newest = trained(store), trained(store, lr=0.01)
    classifier = trained(store, "cnn")
    ablation = trained(store, beta=2)
    remove(newest)
    compare(CompareConfig(out=tmp_path / "report"))
    assert runs_in(tmp_path / "report") == {ablation, older, classifier}
    for run in (older, ablation, classifier):
        remove(run)
    with pytest.raises(UserError, match="all runs of cnn, vae have lost their files"):
        compare(CompareConfig(out=tmp_path / "report"))
    assert runs_in(tmp_path / "report") == {ablation, older, classifier}


def test_a_lost_ablation_or_classifier_or_reproduction_blocks_no_report(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    ablation, classifier, shown = trained(store, beta=2), trained(store, "cnn"), trained(store)
    reproduce(store, {"vae": shown})
    (study,) = store.client.search_runs([store.experiment], "params.study = 'question'")
    shutil.rmtree(artifacts.read(study.info.run_id, "reproduction.json", lambda file: file.parent))
    for run in (ablation, classifier):
        remove(run)
    html = compare(CompareConfig(out=tmp_path / "report")).read_text()
    assert runs_in(tmp_path / "report") == {shown}
    assert html.count("<b>Left out.</b>") == 2
    assert "reproduction.json of run" in capsys.readouterr().err
    assert get_run(shown).id == shown
