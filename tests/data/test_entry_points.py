"""Datasets of other packages, by entry points: as if they were elbolab's own, and blamed by name where they are not."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from elbolab.config.schema import Config
from elbolab.data.readers import DATASETS
from elbolab.data.splits import load_data
from elbolab.experiment.loading import load_for
from elbolab.support.errors import UserError

Install = Callable[..., Path]
CODE = """
import numpy as np
from elbolab.data import Arrays

def stripes(folder):
    images = np.tile(np.array([0, 255], np.uint8), (40, 1, 8, 4))
    return Arrays(images, np.arange(40) % 2, None, 5, 5)

number = 3
def nothing(folder): return None
def floats(folder): return Arrays(np.zeros((40, 1, 8, 8)), np.arange(40), None, 5, 5)
def unlabelled(folder): return Arrays(np.zeros((40, 1, 8, 8), np.uint8), np.arange(39), None, 5, 5)
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Installs a package of one module with entry points, as pip would leave it in a folder of packages."""

    def installed(name: str, code: str = CODE, **points: str) -> Path:
        folder = tmp_path / f"site-{name}"
        info = folder / f"{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (folder / f"{name}.py").write_text(code)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = "".join(f"{point} = {name}:{value}\n" for point, value in points.items())
        (info / "entry_points.txt").write_text(f"[elbolab.datasets]\n{lines}")
        monkeypatch.syspath_prepend(folder)
        return folder

    return installed


def test_a_dataset_of_another_package_is_listed_without_being_imported_and_read_by_its_name(install: Install):
    install("stripy", stripes="stripes")
    assert list(DATASETS) == ["mnist5k", "mnist", "fashion_mnist", "kmnist", "stripes"]
    assert "stripes" in DATASETS
    assert "stripy" not in sys.modules
    with pytest.raises(
        UserError, match=r"'stripe' does not exist; did you mean stripes\?; there are: .*kmnist, stripes,"
    ):
        load_data("stripe", Path())
    data = load_for(Config.parse({"dataset": "stripes"}))
    assert (len(data.train), data.spec.classes, data.train.images.float().mean()) == (30, 2, 127.5)
    assert DATASETS["stripes"] is DATASETS["stripes"]


def test_a_new_process_finds_it_and_help_does_not_import_it(install: Install):
    folder = install("loud", f"print('imported')\n{CODE}", stripes="stripes")
    code = "from elbolab import cli; cli.main()"
    run = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(folder)!r}); {code}", "vae", "--help"]
    assert "imported" not in subprocess.run(run, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("none", r"elbolab\.datasets 'own' of the package broken cannot be loaded from broken:none: AttributeError: "),
        ("number", r"elbolab\.datasets 'own' of the package broken is broken:number, a int; it must be a function"),
        (
            "nothing",
            r"dataset=own of the package broken gives a NoneType; broken:nothing must return elbolab\.data\.Arr",
        ),
        ("floats", r"of the package broken gives images of dtype float64 and shape \(40, 1, 8, 8\); "),
        ("unlabelled", r"of the package broken gives labels of dtype int64 and shape \(39,\) to 40 images; "),
    ],
)
def test_a_broken_one_is_one_line_that_names_its_package(value: str, message: str, install: Install):
    install("broken", own=value)
    with pytest.raises(UserError, match=message) as error:
        load_data("own", Path())
    assert "\n" not in str(error.value)
    sys.modules.pop("broken", None)


def test_a_package_that_cannot_be_imported_stops_no_other_dataset(install: Install):
    install("torn", "import no_such_module", own="stripes")
    assert len(load_data("mnist5k", Path()).train) == 4000
    with pytest.raises(
        UserError, match=r"package torn cannot be loaded .*: ModuleNotFoundError: No module named 'no_such"
    ):
        load_data("own", Path())


def test_names_of_elbolab_win_and_a_clash_is_told_once(install: Install, capsys: pytest.CaptureFixture[str]):
    install("greedy", mnist5k="stripes")
    assert len(load_data("mnist5k", Path()).train) == 4000
    load_data("mnist5k", Path())
    said = "elbolab: mnist5k is elbolab's own, not the elbolab.datasets 'mnist5k' of the package greedy\n"
    assert capsys.readouterr().err == said
    assert list(DATASETS).count("mnist5k") == 1


def test_one_name_of_two_packages_is_refused_with_both(install: Install):
    install("first", own="stripes")
    install("second", own="stripes")
    assert len(load_data("mnist5k", Path()).train) == 4000
    with pytest.raises(UserError, match=r"'own' is of two packages, .*(first|second).* and .*; uninstall one"):
        load_data("own", Path())
