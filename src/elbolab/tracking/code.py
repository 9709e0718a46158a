"""The user's own code beside the journal of a run, of which a resumed training is made."""

import json
from collections.abc import Mapping
from pathlib import Path

from elbolab.support.atomic_files import replace
from elbolab.support.errors import UserError
from elbolab.support.user_code import Source

FILE = "code.json"


def keep_code(folder: Path, code: Mapping[str, Source]) -> None:
    """Keep ``code`` in the folder of an unfinished run for whoever resumes it."""
    if code:
        part = folder / f"{FILE}.part"
        part.write_text(json.dumps({field: source.as_json() for field, source in code.items()}), "utf-8")
        replace(part, folder / FILE)


def read_code(folder: Path) -> dict[str, Source]:
    """What ``keep_code`` kept, nothing where it kept nothing; raises UserError where it cannot be read."""
    file = folder / FILE
    try:
        found = json.loads(file.read_text("utf-8")) if file.exists() else {}
        return {field: Source.from_json(value) for field, value in found.items()}
    except (AttributeError, OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}; begin afresh") from error
