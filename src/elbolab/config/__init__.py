"""What may be set: one definition of a field is its flag, its parameter, its search range and its JSON."""

from elbolab.config.base import Settings
from elbolab.config.schema import (
    CompareConfig,
    Config,
    EvaluateConfig,
    ExploreConfig,
    GapConfig,
    Given,
    MainConfig,
    PromoteConfig,
    ResumeConfig,
    StudyConfig,
    default_data_dir,
    split_ids,
)

__all__ = [
    "CompareConfig",
    "Config",
    "EvaluateConfig",
    "ExploreConfig",
    "GapConfig",
    "Given",
    "MainConfig",
    "PromoteConfig",
    "ResumeConfig",
    "Settings",
    "StudyConfig",
    "default_data_dir",
    "split_ids",
]
