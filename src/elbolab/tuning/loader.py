"""Reading a study's file: the definition that it makes, or one line that says what is wrong with it."""

import importlib.util
from pathlib import Path

from pydantic import ValidationError

from elbolab.config.base import Settings
from elbolab.config.schema import EvaluateConfig
from elbolab.support.errors import UserError
from elbolab.tuning.reproduction import Reproduction, Training
from elbolab.tuning.study import Study

_KINDS: dict[str, type[Settings]] = {kind.__name__: kind for kind in (Study, Reproduction, Training, EvaluateConfig)}


def load_study(name: str) -> tuple[str, Study | Reproduction]:
    """The name and the definition of a study: of studies/NAME.py under the working folder, or of the file NAME.

    Raises UserError where there is no such file, or its code fails, or it defines no valid study.
    """
    path = Path(name) if name.endswith(".py") else Path("studies", f"{name}.py")
    if not path.is_file():
        have = ", ".join(sorted(found.stem for found in Path("studies").glob("*.py"))) or "none"
        raise UserError(f"study={name!r} is no file {path}; studies here: {have}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ValidationError as error:
        kind = _KINDS.get(error.title, Study)
        raise UserError(f"{path}: {'; '.join(kind._explain(problem) for problem in error.errors())}") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:
        raise UserError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    study = getattr(module, "STUDY", None)
    if not isinstance(study, Study | Reproduction):
        raise UserError(f"{path} has no STUDY = Study(...) or Reproduction(...); define one")
    return path.stem, study
