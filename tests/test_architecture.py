"""The rooms of the package stand in an order, and each imports only from those before it."""

import importlib.util
from graphlib import TopologicalSorter
from types import ModuleType

import pytest
from conftest import REPOSITORY


@pytest.fixture(scope="module")
def architecture() -> ModuleType:
    """The script that draws the picture from the imports."""
    spec = importlib.util.spec_from_file_location("architecture", REPOSITORY / "docs" / "architecture.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_room_imports_only_from_the_rooms_before_it(architecture: ModuleType):
    # The package itself comes last: it has a name of each room.
    rank = {name: place for place, name in enumerate([*architecture.ROOMS, ""])}
    upwards = [
        f"{name} imports {used}"
        for name, deps in architecture.imports().items()
        for used in deps
        if rank[architecture.room(used)] > rank[architecture.room(name)]
    ]
    assert upwards == []


def test_imports_run_in_no_circle_and_on_at_most_sixteen_levels(architecture: ModuleType):
    imports = architecture.imports()
    levels: dict[str, int] = {}
    # Raises CycleError with the circle, where there is one.
    for name in TopologicalSorter(imports).static_order():
        below = max((levels[used] for used in imports[name]), default=0)
        levels[name] = below + (architecture.modules()[name].name != "__init__.py")
    assert max(levels.values()) <= 16


def test_the_package_is_read_from_sixteen_names(architecture: ModuleType):
    entries = [path for path in architecture.PACKAGE.iterdir() if path.name != "__pycache__"]
    assert len(entries) <= 16


def test_the_picture_is_of_the_imports_as_they_are(architecture: ModuleType):
    picture = REPOSITORY / "docs" / "architecture.svg"
    assert picture.read_text() == architecture.draw(), "python docs/architecture.py draws it anew"


def test_the_public_names_are_what_dir_shows():
    import elbolab

    assert dir(elbolab) == sorted(elbolab.__all__)
    assert {"MODELS", "Study", "load_model", "train_model"} <= {*dir(elbolab)}
    assert not {"Any", "import_module", "sys"} & {*dir(elbolab)}
    assert all(getattr(elbolab, name) is not None for name in dir(elbolab))
