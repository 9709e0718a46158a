"""The user's own code: what travels with a class, and that it is executed as what it was."""

import inspect
import sys
from pathlib import Path

import pytest

from elbolab.support import user_code
from elbolab.support.code_text import needed
from elbolab.support.errors import UserError
from elbolab.support.user_code import Source, find, kept, load, of_class, source_of


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def forget() -> None:
    """As in a new process."""
    user_code._objects.clear()
    user_code._sources.clear()
    user_code._roots.clear()
    for name in [name for name in sys.modules if name.startswith(user_code.PACKAGE)]:
        del sys.modules[name]


MAIN = """
from __future__ import annotations
import math, helper as h, part.inner
import part.inner as inner
from helper import value
from part import inner as again

class Thing:
    def everything(self):
        import late
        return [math.floor(2.5), h.value, part.inner.deep, inner.deep, value, again.deep, late.value]
"""


def test_a_file_and_what_it_imports_beside_it_is_executed_without_the_folder(tmp_path: Path):
    write(tmp_path, main=MAIN, helper="value = 1", late="value = 4", other="1 / 0")
    write(tmp_path / "part", inner="from . import deeper\ndeep = deeper.x", deeper="x = 3")
    (tmp_path / "part" / "__init__.py").touch()
    source = source_of(f"{tmp_path}/main.py:Thing")
    assert source.files.keys() == {
        "main.py",
        "helper.py",
        "late.py",
        "part/__init__.py",
        "part/inner.py",
        "part/deeper.py",
    }
    assert load(source)().everything() == [2, 1, 3, 3, 1, 3, 4]
    kind = find(f"{tmp_path}/main.py:Thing")
    assert kind is load(source)
    assert of_class(kind) == source
    assert not {"helper", "late", "part"} & sys.modules.keys()
    again = Source.from_json(source.as_json())
    for file in source.files:
        (tmp_path / file).unlink()
    forget()
    other = load(again)
    assert other is not kind
    assert other().everything() == [2, 1, 3, 3, 1, 3, 4]
    assert "def everything" in inspect.getsource(other)


def test_files_of_one_name_are_told_apart(tmp_path: Path):
    words = []
    for place in ("one", "two"):
        write(tmp_path / place, model="from helper import name\nclass A:\n    x = name", helper=f"name = {place!r}")
        words.append(f"{tmp_path / place}/model.py:A")
    assert [find(word).x for word in words] == ["one", "two"]
    one, two = map(source_of, words)
    with kept({words[0]: two}):
        assert find(words[0]).x == "two"
    write(tmp_path / "one", helper="name = 'changed'")
    assert find(words[0]).x == "changed"
    assert one.digest != source_of(words[0]).digest


def test_a_file_of_a_package_is_imported_as_part_of_it(tmp_path: Path):
    write(tmp_path / "pkg" / "sub", model="from ..names import name\nclass A:\n    x = name", __init="")
    write(tmp_path / "pkg", names="name = 'whole'")
    for folder in ("pkg", "pkg/sub"):
        (tmp_path / folder / "__init__.py").touch()
    assert find(f"{tmp_path}/pkg/sub/model.py:A").x == "whole"


@pytest.mark.parametrize(
    ("text", "word", "message"),
    [
        ("", "none.py:A", r"none\.py is not there; name a Python file"),
        ("class B: ...\nclass C: ...", "bad.py:A", r"bad\.py has no 'A'; there are: B, C"),
        ("class A(:", "bad.py:A", r"bad\.py cannot be read: SyntaxError: invalid syntax \(bad\.py, line 1\)"),
        (
            "\nimport nosuch_package",
            "bad.py:A",
            r"bad\.py cannot be executed: ModuleNotFoundError: .*\(bad\.py, line 2\)",
        ),
        (
            "A = 1 / 0",
            "bad.py:A",
            r"bad\.py cannot be executed: ZeroDivisionError: division by zero \(bad\.py, line 1\)",
        ),
        ("raise SystemExit(3)", "bad.py:A", r"bad\.py cannot be executed: SystemExit: 3"),
        ("\0", "bad.py:A", r"bad\.py cannot be read: "),
        ("", "a.b.py:A", r"a\.b\.py has a dot in its name"),
        ("", "A", r"'A' is no class of a file; write path/to/file\.py:Name"),
    ],
)
def test_code_that_fails_is_told_in_a_line_with_its_place(tmp_path: Path, text: str, word: str, message: str):
    (tmp_path / "bad.py").write_text(text)
    (tmp_path / "a.b.py").write_text(text)
    with pytest.raises(UserError, match=message) as raised:
        find(f"{tmp_path}/{word}" if ".py" in word else word)
    assert "\n" not in str(raised.value)


def test_code_is_executed_where_it_is_trusted_and_not_before(tmp_path: Path):
    write(tmp_path, model="class A: ...\nclass B: ...", nets="")
    write(tmp_path / "else", other="class A: x = 1")
    source = Source.from_json(source_of(f"{tmp_path}/model.py:A").as_json())
    with pytest.raises(UserError, match=r"^model\.py:A is code that came with the model and is not executed unasked"):
        user_code.refuse_untrusted(source, False)
    with pytest.raises(UserError, match=r"^model\.py:A, which came with the model, is not the code of other\.py:A"):
        user_code.refuse_untrusted(source, tmp_path / "else" / "other.py")
    # Who names a file means what lies beside it too.
    for file in ("model.py", "nets.py"):
        user_code.refuse_untrusted(source, tmp_path / file)
    user_code.refuse_untrusted(source, True)
    load(source)
    user_code.refuse_untrusted(source, False)


def test_of_a_notebook_and_a_script_what_the_class_needs_is_kept():
    text = """
from __future__ import annotations
import os, math as m
import json
print("an effect")
WIDTH = 3
def helper(x):
    return m.sqrt(x) * WIDTH
class Base:
    '''Kept.'''
class Other(Base): ...
Base.y = 3
run = os.environ["no such thing"]
class Mine(Base):
    x: int = helper(3)
WIDTH = 3
class Mine(Base):
    x: int = helper(4)
WIDTH = 5
if __name__ == "__main__":
    helper = None
"""
    kept_text = needed(["import sys", text, "broken = ("], "Mine")
    scope: dict = {}
    exec(kept_text, scope)
    assert scope["Mine"].x == 6.0
    assert scope["WIDTH"] == 5
    assert scope["Mine"].y == 3
    assert scope["Base"].__doc__ == "Kept."
    assert not {"json", "Other", "run"} & scope.keys()
    assert "print" not in kept_text
