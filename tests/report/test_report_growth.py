"""The comparison report of several seeds, datasets and ablations, and its tables as they sort and as LaTeX."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
from conftest import complaints
from invented_runs import Store, fill, reproduce, rows_of, served, spread
from scipy.stats import t as student_t

from elbolab.report.collect import Entry
from elbolab.report.compare import CompareConfig, compare
from elbolab.report.plots import FLOOR_SLOT, SLOTS, colours
from elbolab.report.sections.summary import unconverged
from elbolab.report.select import by_dataset
from elbolab.report.sentences import confusion
from elbolab.support.errors import UserError
from elbolab.support.statistics import bootstrap, paired
from elbolab.tracking.mlflow_reader import RunRecord
from elbolab.tracking.run_names import find_training

ODD = "npz:odd_50%&#{1}~^.npz"
"""The name of a dataset with what HTML and LaTeX must escape."""


class Wide(NamedTuple):
    """A report of two datasets: its folder, the ids of the first one's runs, those of the second one's, the store."""

    folder: Path
    ids: dict[str, str]
    odd: dict[str, str]
    store: Store


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory, tables: Path) -> Iterator[Wide]:
    folder = tmp_path_factory.mktemp("wide")
    with served(folder, tables) as patch:
        patch.setenv("MLFLOW_EXPERIMENT_NAME", "wide")
        store = Store(folder, "wide")
        # Else alike, but evaluated otherwise; and two ablations of the vae, one with two seeds.
        other = store.train("vae", sigma=0.4, seed=7, pictures=False)
        store.evaluate(other, "vae", samples=10, shift=50)
        ids: dict[str, str] = {}
        for seed in (0, 1):
            ids[f"lr {seed}"] = store.train("vae", sigma=0.4, lr=0.01, seed=seed, pictures=False)
            store.evaluate(ids[f"lr {seed}"], "vae", shift=-4 + seed)
        ids["small"] = store.train("vae", sigma=0.4, hidden=8, pictures=False)
        # Three seeds of the vae: those of fill(), of 1 and, typed differently by `mlflow run -P lr=1e-3`, of 2.
        for seed, lr, shift in ((1, "0.001", 1.0), (2, "1e-3", -2.0)):
            ids[f"seed {seed}"] = store.train("vae", sigma=0.4, seed=seed, lr=lr, pictures=False)
            store.evaluate(ids[f"seed {seed}"], "vae", shift=shift)
        ids |= fill(store)
        reproduce(store, ids)
        odd = {model: store.train(model, digest="d2", data=ODD, sigma=0.4, pictures=False) for model in ("vae", "ppca")}
        for model, run in odd.items():
            store.evaluate(run, model, shift=5, trust=False)
        yield Wide(compare(CompareConfig(dataset=("toy", ODD), out=folder / "report")).parent, ids, odd, store)


def metrics(wide: Wide, run: str) -> dict[str, float]:
    return wide.store.client.get_run(run).data.metrics


def log_px(wide: Wide, *runs: str) -> np.ndarray:
    """Log p(x) of each test image, its mean over the runs."""
    frames = (pd.read_parquet(wide.store.folder / "files" / run / "likelihood.parquet") for run in runs)
    return np.mean(
        [frame.query("split == 'test'").set_index("index")["log_px"].dropna().sort_index() for frame in frames], 0
    )


def test_colours_are_told_apart_and_stay(wide: Wide) -> None:
    models = ["cnn", "vae", "iwae", "latent_opt", "ppca", "semi_amortized", "vae 2", "d", "e", "f", "g"]
    slots = colours([*models, "vae", "iwae"])
    assert [*slots] == models
    assert sorted([*slots.values(), FLOOR_SLOT]) == [*range(len(models) + 1)]
    style = (wide.folder / "index.html").read_text().partition("</style>")[0]
    for theme in re.findall(r"--paper: #.*?\}", style, re.DOTALL):
        tints = dict(re.findall(r"--(m\d+|paper): #([0-9a-f]{6})", theme))
        assert len(set(tints.values())) == len(tints) == 1 + max(SLOTS) + 1
        light = {name: luminance(tint) for name, tint in tints.items()}
        for name in light.keys() - {"paper"}:
            dark, bright = sorted((light[name], light["paper"]))
            assert (bright + 0.05) / (dark + 0.05) >= 3, name  # what WCAG 2 asks of graphics


def luminance(tint: str) -> float:
    """Relative luminance of an sRGB colour by WCAG 2."""
    values = np.array([int(tint[i : i + 2], 16) for i in (0, 2, 4)]) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_paired_interval_covers_the_truth_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        common = random.normal(0, 20, 60)
        one, other = common + random.normal(1, 1, 60), common + random.normal(0, 1, 60)
        gap = paired(dict(enumerate(one)), dict(enumerate(other)))
        assert gap is not None
        assert gap.low < gap.mean < gap.high
        hits += gap.low < 1 < gap.high
    assert 0.9 <= hits / 200 <= 0.99
    steady = paired({1: 5.0, 2: 7.0, 9: 0.0}, {1: 4.0, 2: 6.0})
    assert steady is not None
    assert (steady.images, steady.mean, steady.low, steady.high, steady.above) == (2, 1.0, 1.0, 1.0, 1.0)
    assert paired({1: 5.0}, {1: 4.0}) is None


def test_the_interval_of_class_preservation_covers_as_often_as_it_says():
    random = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        low, high = bootstrap((random.random(80) < 0.8).astype(float))
        held += low <= 0.8 <= high
    assert 0.9 <= held / 200 <= 0.99
    assert bootstrap(np.ones(10)) == (1, 1)


def test_seeds_give_mean_and_interval(wide: Wide) -> None:
    runs = [wide.ids[name] for name in ("vae", "seed 2", "seed 1")]
    table = pd.read_csv(wide.folder / "seeds.csv").set_index(["dataset", "model", "metric"])
    assert {(dataset, model) for dataset, model, _ in table.index} == {("toy", "vae")}
    page = (wide.folder / "index.html").read_text()
    for key in ("test/log_px", "val/log_px", "test/class_preservation"):
        values = [metrics(wide, run)[key] for run in runs]
        row = table.loc[("toy", "vae", key)]
        assert row["runs"].split() == runs
        assert row["mean"] == pytest.approx(np.mean(values))
        assert row["half_width"] == pytest.approx(student_t.ppf(0.975, 2) * np.std(values, ddof=1) / np.sqrt(3))
    mean, half = table.loc[("toy", "vae", "test/log_px"), ["mean", "half_width"]]
    assert spread(mean, half) in page
    shown = pd.read_csv(wide.folder / "summary.csv").query("dataset == 'toy' and model == 'vae'")
    assert set(shown["run"]) == {wide.ids["vae"]}


def test_pairs_average_an_image_over_seeds_first(wide: Wide) -> None:
    vae = log_px(wide, *(wide.ids[name] for name in ("vae", "seed 1", "seed 2")))
    gap = log_px(wide, wide.ids["ppca"]) - vae
    row = pd.read_csv(wide.folder / "pairs.csv").query(
        "dataset == 'toy' and model == 'ppca' and other == 'vae' and split == 'test'"
    )
    assert row["mean"].item() == pytest.approx(gap.mean())
    assert "averaged over seeds: vae over 3." in (wide.folder / "index.html").read_text()


def test_ablations_change_one_parameter(wide: Wide) -> None:
    table = pd.read_csv(wide.folder / "ablations.csv", keep_default_na=False).query("model == 'vae'")
    assert table["field"].tolist() == ["", "hidden", "lr"]
    assert table["value"].tolist() == ["", "8", "0.01"]
    assert table["base"].tolist() == ["", "unset", "0.001"]
    assert table["seeds"].tolist() == [3, 1, 2]
    rates = [wide.ids["lr 1"], wide.ids["lr 0"]]
    assert table["runs"].tolist()[1:] == [wide.ids["small"], " ".join(rates)]
    seeds = [wide.ids[name] for name in ("vae", "seed 1", "seed 2")]
    assert float(table["test_log_px"].iloc[2]) == pytest.approx(log_px(wide, *rates).mean())
    assert float(table["mean"].iloc[2]) == pytest.approx((log_px(wide, *rates) - log_px(wide, *seeds)).mean())
    assert table["mean"].tolist()[:2] == ["", ""]  # the compared run itself, and one that was not evaluated


def test_overview_has_every_model_on_every_dataset(wide: Wide) -> None:
    page = (wide.folder / "index.html").read_text()
    overview = rows_of(page)[0]
    assert overview[0] == ["Model", "toy", ODD]
    for name in ("vae", "ppca"):
        cells = []
        for run in (wide.ids[name], wide.odd[name]):
            found = metrics(wide, run)
            dagger = "\u2020" if found.get("test/pareto_k", 0) > 2 / 3 else ""
            cells.append(f"{spread(found['test/log_px'], found['test/log_px_se'])}{dagger}")
        assert [name, *cells] in overview
    assert any(row[0] == "latent_opt" and row[2] == "\u2013" for row in overview)


def test_what_no_evaluation_left_is_not_shown(wide: Wide) -> None:
    page = (wide.folder / "index.html").read_text()
    sections = re.findall(r'<section id="(data\d-[\w-]+)">', page)
    assert {"data1-how-far-to-trust-it", "data1-latent-space-and-samples"} <= {*sections}
    assert not {"data2-how-far-to-trust-it", "data2-latent-space-and-samples"} & {*sections}
    assert "\u2020" not in page[page.index('id="data2-summary"') : page.index('id="reproductions"')]
    titles = re.findall(r"<h3>(\d \w+)", page)
    assert [title for title in titles if "Ablations" in title] == ["6 Ablations"]
    summary = pd.read_csv(wide.folder / "summary.csv").query("dataset != 'toy'")
    assert summary[["pareto_k", "unreliable", "unreliable_share"]].isna().to_numpy().all()
    for name in ("gap", "bounds", "representation", "fidelity"):
        assert {*pd.read_csv(wide.folder / f"{name}.csv")["dataset"]} == {"toy"}


def test_runs_named_are_grouped_by_dataset_and_seed(wide: Wide) -> None:
    named = (*wide.odd.values(), *(wide.ids[name] for name in ("seed 1", "vae", "lr 0")))
    found = [[[run.id for run in group] for group in groups] for groups in by_dataset([*map(find_training, named)])]
    vaes = [[wide.ids["vae"], wide.ids["seed 1"]], [wide.ids["lr 0"]]]
    assert found == [[[wide.odd["vae"]], [wide.odd["ppca"]]], vaes]


def test_datasets_of_different_observation_models_are_refused(wide: Wide, tmp_path: Path) -> None:
    other = wide.store.train("vae", digest="d3", data="third", observed="bernoulli", pictures=False)
    for chosen in ({"dataset": ("toy", "third")}, {"run": (wide.ids["vae"], other)}):
        with pytest.raises(UserError) as error:
            compare(CompareConfig(**chosen, out=tmp_path / "report"))
        assert all(text in str(error.value) for text in (wide.ids["vae"], other, "bernoulli"))
    with pytest.raises(UserError, match=r"no finished train run on dataset none \(there are runs on npz:odd"):
        compare(CompareConfig(dataset=("toy", "none"), out=tmp_path / "report"))
    assert not (tmp_path / "report").exists()


def test_same_runs_give_same_bytes(wide: Wide, tmp_path: Path) -> None:
    again = compare(CompareConfig(dataset=("toy", ODD, "toy"), out=tmp_path / "report")).parent
    for path in wide.folder.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name


def plain(cell: str) -> str:
    """A cell of LaTeX as the page writes it."""
    cell = re.sub(r"\\text(?:tt|bf)\{([^{}]*)\}", r"\1", cell)
    words = {r"\textbackslash{}": "\\", r"\textasciitilde{}": "~", r"\textasciicircum{}": "^"}
    words |= {r"\textdagger{}": "\u2020", r"\'e": "é"}
    words |= {r"$\pm$": "±", "$-$": "\u2212", r"$\to$": "→", "--": "\u2013", "$<$": "<", "$>$": ">", "$|$": "|"}
    for latex, word in words.items():
        cell = cell.replace(latex, word)
    return re.sub(r"\\([&%$#_{}])", r"\1", cell)


def test_latex_tables_hold_the_numbers_of_the_page(wide: Wide) -> None:
    text = (wide.folder / "tables.tex").read_text()
    body = re.sub(r"(?m)^%.*\n", "", text)
    for name in ("table", "tabular"):
        assert body.count(rf"\begin{{{name}}}") == body.count(rf"\end{{{name}}}") > 10
    bare = re.sub(r"\\[&%$#_{}\\]", "", body)
    assert bare.count("{") == bare.count("}")
    assert bare.count("$") % 2 == 0
    assert not set("%#_~^") & set(bare)
    assert r"npz:odd\_50\%\&\#\{1\}\textasciitilde{}\textasciicircum{}.npz" in body
    assert all(ord(character) < 128 for character in body)
    labels = re.findall(r"\\label\{([^}]*)\}", body)
    assert len(labels) == len(set(labels))
    tables = []
    for columns, inside in re.findall(r"\\begin\{tabular\}\{([lr]+)\}(.*?)\\end\{tabular\}", body, re.DOTALL):
        assert [inside.count(rf"\{rule}rule") for rule in ("top", "mid", "bottom")] == [1, 1, 1]
        lines = [line.removesuffix(r" \\").split(" & ") for line in inside.splitlines() if line.endswith(r"\\")]
        assert {len(line) for line in lines} == {len(columns)}
        tables.append([[plain(cell).replace(", ", " ") for cell in line] for line in lines])
    page = [
        [[cell.replace(", ", " ") for cell in row] for row in table]
        for table in rows_of((wide.folder / "index.html").read_text())
    ]
    heads = [[[re.sub(r" [0-9a-f]{8}$", "", cell) for cell in table[0]], *table[1:]] for table in page]
    assert tables == heads


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex on PATH")
def test_latex_compiles_the_tables_and_none_is_wider_than_a_line(wide: Wide, tmp_path: Path) -> None:
    tables = (wide.folder / "tables.tex").read_text()
    (packages,) = re.findall(r"\\usepackage\{.*\}", tables)
    document = rf"\documentclass{{article}}{packages}\begin{{document}}{tables}\end{{document}}"
    (tmp_path / "document.tex").write_text(document)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "document.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    log = (tmp_path / "document.log").read_text()
    assert [line for line in log.splitlines() if "Overfull" in line] == []


def test_tables_sort_by_mouse_and_keyboard(wide: Wide, browser: Any) -> None:
    with browser.new_page(viewport={"width": 1200, "height": 900}) as view:
        problems = complaints(view)
        view.goto((wide.folder / "index.html").as_uri())
        table = view.locator("#data1-summary table").first

        def column(number: int) -> list[str]:
            return table.locator(f"tbody td:nth-child({number})").all_inner_texts()

        heads = table.locator("thead th")
        before = column(1)
        heads.nth(2).get_by_role("button", name="Test log p(x)").click()
        assert heads.nth(2).get_attribute("aria-sort") == "ascending"
        values = [float(text.split(" ")[0].replace("\u2212", "-")) for text in column(3) if text != "\u2013"]
        assert len(values) == 4
        assert values == sorted(values)
        assert column(3)[4:] == ["\u2013"]  # what has no number stays below
        assert column(1)[0] == "constant image"
        view.keyboard.press("Enter")
        assert heads.nth(2).get_attribute("aria-sort") == "descending"
        assert [float(text.split(" ")[0].replace("\u2212", "-")) for text in column(3)[:4]] == sorted(
            values, reverse=True
        )
        heads.nth(0).get_by_role("button").focus()
        view.keyboard.press("Space")
        assert heads.nth(2).get_attribute("aria-sort") is None
        assert column(1) == sorted(before)
        digits = view.locator("#data1-likelihood table.sortable thead th:has(a)").first
        assert digits.locator("button a").count() == 0
        assert digits.locator("a").count() == 1
    with browser.new_context(java_script_enabled=False) as context:
        page = context.new_page()
        page.goto((wide.folder / "index.html").as_uri())
        assert page.locator("thead button").count() == 0
        assert page.locator("#data1-summary table").first.locator("tbody td").first.inner_text() == before[0]
    assert problems == []


def test_wide_page_opens_in_a_browser(wide: Wide, browser: Any) -> None:
    for scheme in ("light", "dark"):
        with browser.new_page(viewport={"width": 390, "height": 844}, color_scheme=scheme) as view:
            problems = complaints(view)
            view.goto((wide.folder / "index.html").as_uri())
            figure = view.locator("#reproductions svg")
            assert figure.get_attribute("aria-label") == (
                "test log p(x), nats, by passes, counted: vae from -70.00 at 1 to -52.50 at 5, dotted -86.76"
            )
            assert figure.bounding_box()["width"] > 300
            assert view.eval_on_selector_all(
                "img", "images => images.every(image => image.naturalWidth > 0 && image.alt)"
            )
            links = view.eval_on_selector_all("a", "links => links.map(link => link.getAttribute('href'))")
            assert len(links) > 50
            assert view.evaluate("links => links.filter(link => !document.querySelector(link))", links) == []
            for width in (390, 1280):
                view.set_viewport_size({"width": width, "height": 844})
                assert view.evaluate("document.documentElement.scrollWidth") <= width
            # Every colour that the page names is one that its style defines.
            undefined = """() => [...new Set(document.body.innerHTML.match(/--m\\d+/g))].filter(
                name => !getComputedStyle(document.documentElement).getPropertyValue(name))"""
            assert view.evaluate(undefined) == []
        assert problems == []


def test_what_has_not_converged_is_named_with_the_command_that_trains_longer():
    def entry(label: str, converged: str) -> Entry:
        tags = {"converged": converged, "last_epoch": "30"} if converged else {}
        run = RunRecord(f"{label}123", label, "0", "FINISHED", 0, 1.0, {"model": "vae"}, tags, {}, "", None)
        return Entry(label, 0, (run,), (pd.DataFrame(),))

    entries = [entry("short", "false"), entry("long", "true"), entry("old", "")]
    (notice,) = unconverged(entries)
    assert notice.title == "Not converged"
    assert notice.text.startswith("short ended after 30 epochs, before its validation score had stopped improving.")
    assert notice.command == "elbolab vae --resume short123 --new-run --schedule plateau --epochs 300"
    # Of 4 steps an epoch 300 are 75 epochs, and a training judges several times as many.
    few = replace(entries[0].run, metrics={"train/steps": 120.0}, tags=entries[0].run.tags | {"last_epoch": "30"})
    (notice,) = unconverged([replace(entries[0], runs=(few,))])
    assert notice.command.endswith("--epochs 600")


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ([[5, 2, 0], [1, 4, 0], [0, 0, 3]], "cnn misreads 3 of 15 test images, most often 0 as 1 (2 of them)."),
        ([[5, 2, 0], [2, 4, 0], [0, 0, 3]], "cnn misreads 4 of 15 test images."),
        ([[8]], "cnn misreads 0 of 15 test images."),
    ],
)
def test_of_equally_frequent_mistakes_none_is_named(counts: list[list[int]], said: str):
    run = RunRecord("cnn123", "cnn", "0", "FINISHED", 0, 1.0, {"model": "cnn"}, {}, {}, "", None)
    classes = {"splits": {"test": {"n": 15, "confusion": counts}}}
    found = confusion(Entry("cnn", 0, (run,), (pd.DataFrame(),), classes=classes))
    assert found is not None
    assert found.text == said
