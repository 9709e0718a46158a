"""What may be set: of every training, of an evaluation, of each other command; a model adds its own fields."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, create_model, field_validator, model_validator

from elbolab.config.base import Names, Settings
from elbolab.config.limits import WritableFile, WritableFolder, expanded
from elbolab.config.ranges import FloatRange, IntRange


def default_data_dir() -> Path:
    """Where datasets are kept: the environment variable ELBOLAB_DATA, else the user's cache folder."""
    if folder := os.environ.get("ELBOLAB_DATA"):
        return expanded(Path(folder))
    # Without it where a registered model is loaded, whose config has a folder.
    from platformdirs import user_cache_path

    return expanded(user_cache_path("elbolab"))


RateSchedule = Literal["cosine", "constant", "cooldown", "staged", "plateau"]


DATA_FIELDS = ("dataset", "train_size", "val_size", "test_size", "split_seed", "binarise", "image_size")
"""The fields that say which images a model is trained and judged on; beside them the folder that they lie in."""


class Config(Settings):
    """What every training has in common: the data, the budget, the optimiser's rate, the seed and the device."""

    dataset: str = "mnist5k"
    """Dataset: mnist5k (embedded), mnist, fashion_mnist, kmnist, or your own images: npz:PATH, npy:PATH, folder:PATH or
    parquet:PATH."""
    image_size: Annotated[int, Field(gt=0, le=1024)] | None = None
    """Side to which the pictures of folder: and parquet: are cut and resized [default: as they are]."""
    data_dir: Path = Field(default_factory=default_data_dir)
    """Folder of the datasets that are downloaded [default: $ELBOLAB_DATA, else the user's cache folder]."""
    train_size: Annotated[int, Field(gt=0)] | None = None
    """Number of training images, stratified by class [default: all that the other splits leave]."""
    val_size: Annotated[int, Field(gt=0)] | None = None
    """Number of validation images, held out of the training images [default: the dataset's]."""
    test_size: Annotated[int, Field(gt=0)] | None = None
    """Number of test images, stratified by class [default: the dataset's]."""
    split_seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the stratified split and of pixels that are binarised once."""
    binarise: Literal["no", "once", "half"] = "no"
    """Whether all images are made black and white before anything sees them: every pixel white with the probability of
    its grey, drawn once, or where it is above a half."""
    epochs: Annotated[int, Field(gt=0)] = 200
    """Passes over the training images; by the schedule plateau the most."""
    batch_size: Annotated[int, Field(gt=0), IntRange(16, 512, log=True)] = 64
    """Images in one step."""
    lr: Annotated[float, Field(gt=0), FloatRange(1e-4, 1e-2, log=True)] = 1e-3
    """Learning rate of Adam on the networks at the first step; it falls by the schedule."""
    schedule: RateSchedule = "plateau"
    """How rates fall: to 0 along a half cosine; not at all; not at all and in the last fifth, cooldown, along a line to
    0; to lr 10^(-i/7) for 3^i passes, i = 0 to 7, 3,280 in all (Burda et al. 2016, section 5); or, plateau, to a tenth
    when the validation score has stopped improving, and the training ends when it has again."""
    patience: Annotated[int, Field(gt=0)] = 5
    """Epochs over which the validation score is averaged: it has stopped improving where the mean of so many epochs is
    hardly above that of as many before them."""
    patience_steps: Annotated[int, Field(ge=0)] = 300
    """Steps that these epochs have at least: where an epoch is a few steps, there are more of them."""
    min_improvement: Annotated[float, Field(ge=0)] = 0.2
    """By how much that mean must rise, in nats an image, for the score to be improving."""
    clip: Annotated[float, Field(ge=0)] = 50.0
    """Norm to which a longer gradient of the nets and the prior is shortened, rows of a table left as they are; 0 for
    none."""
    adam_eps: Annotated[float, Field(gt=0)] = 1e-8
    """Constant that Adam adds to the root of the second moment."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the initial weights, the order of the images and the latent noise."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto takes the GPU where there is one."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the nets' matrix products while they train: auto takes bfloat16 on a CPU that has instructions for it.
    Weights, likelihoods and every evaluation are in float32."""
    compile: Literal["auto", "no"] = "auto"
    """Whether steps are compiled: auto does where it repays itself, in long trainings of dense nets on a CPU with a C++
    compiler."""

    def with_runs(self, find_id: Callable[[str], str]) -> Self:
        """The config with the id of each run that it names in place of what it is named by."""
        return self

    @field_validator("data_dir")
    @classmethod
    def _expanded(cls, folder: Path) -> Path:
        return expanded(folder)

    @field_validator("clip", mode="before")
    @classmethod
    def _none_is_zero(cls, value: Any) -> Any:
        # As runs of an earlier version have it.
        return 0.0 if value is None else value


class GapConfig(Settings):
    """How far q and what it could be are from p(z | x): annealed importance sampling and local optimisation."""

    gap_images: Annotated[int, Field(ge=0)] = 0
    """Training images and test images whose inference gap is measured; 0 for none, since an image takes seconds, and
    where it is annealed from the prior too, with as many simulated images, up to minutes."""
    ais_chains: Annotated[int, Field(gt=1)] = 16
    """Chains an image of annealed importance sampling."""
    ais_distributions: Annotated[int, Field(ge=0)] = 1000
    """Distributions that each chain passes through; 0 for no chains, log p(x) being that which is quoted."""
    ais_leapfrog: Annotated[int, Field(gt=0)] = 10
    """Leapfrog steps of each Hamiltonian move."""
    ais_schedule: Literal["sigmoid", "linear"] = "sigmoid"
    """How the temperatures are spaced."""
    ais_start: Literal["prior", "q"] = "prior"
    """Where the chains begin."""
    local_start: Literal["both", "prior", "q"] = "both"
    """Where the search for the best posterior of each image begins; of two searches the better counts."""
    local_family: Literal["own", "all"] = "own"
    """In which families of posteriors it is searched: the model's own, or beside it every family that there is, each
    search from what the one before found."""
    local_steps: Annotated[int, Field(gt=0)] = 1000
    """Adam steps of that search."""
    local_lr: Annotated[float, Field(gt=0)] = 0.03
    """Learning rate of these steps at the first; it falls to 0 along a half cosine."""
    local_samples: Annotated[int, Field(gt=0)] = 10
    """Samples of the ELBO in each of them."""

    @field_validator("ais_distributions")
    @classmethod
    def _a_path(cls, count: int) -> int:
        if count == 1:
            raise ValueError("should be 0 or at least 2: one distribution is no path")
        return count


class LikelihoodConfig(Settings):
    """How log p(x) of an image is estimated."""

    method: Literal["auto", "importance"] = "auto"
    """Estimator of log p(x): auto takes the cheapest that meets the tolerance for each image, importance samples from
    the model's own posterior."""
    tolerance: Annotated[float, Field(gt=0)] = 0.3
    """Standard error of an image's log p(x), in nats, that auto is to meet."""
    samples: Annotated[int, Field(gt=0)] = 1000
    """Importance samples an image."""
    budget: Annotated[int, Field(gt=0)] = 16_000
    """Gradients an image that auto spends on annealing at most; an image that needs more is marked as unreliable."""


class EvaluateConfig(LikelihoodConfig, GapConfig):
    """How a trained model is evaluated: the same protocol for every model."""

    simulated: Annotated[int, Field(ge=0)] = 20
    """Images that the model makes, on which auto finds how far its estimates may be too low; 0 for none."""
    images: Annotated[int, Field(gt=0)] | Literal["all"] = 200
    """Images of each split, stratified by class, or all; the mean log p(x) is over the whole split all the same."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the choice of images, of the importance samples and of fitted posteriors."""
    classifier: str | None = None
    """Run id of the cnn of the same data that judges class preservation [default: the newest finished one]."""
    ood: Names = ()
    """Other datasets, as `dataset` names them, from whose test images those of the model's own data are told by their
    scores, repeated or separated by commas [default: none, since it takes as long as log p(x) does]."""

    @model_validator(mode="after")
    def _enough_images(self) -> Self:
        if self.images != "all" and self.gap_images > self.images:
            raise ValueError(f"gap_images={self.gap_images} must be at most images={self.images}; raise images")
        return self


class CompareConfig(Settings):
    """Which runs are compared, and where the report goes."""

    run: Names = ()
    """Run ids to compare, repeated or separated by commas [default: the newest finished run of each model and its
    other seeds]."""
    dataset: Names = ()
    """Datasets of the newest runs, repeated or separated by commas [default: that of the newest latent-variable
    model]."""
    out: WritableFolder = Path("report")
    """Folder of the report."""


class ExploreConfig(Settings):
    """What the page that explores a latent space holds, and where it goes."""

    images: Annotated[int, Field(gt=1, le=2000)] = 500
    """Test images on the map, stratified by class: those that an evaluation of as many images takes at seed 0."""
    out: WritableFile = Path("explorer.html")
    """The page, one file."""


class RunsConfig(Settings):
    """How many runs are listed."""

    limit: Annotated[int, Field(gt=0)] = 20
    """Most trainings that are listed, the newest of all."""


class PruneConfig(Settings):
    """Which runs are deleted, or what of them."""

    what: Literal["runs", "models", "checkpoints", "pictures"] = "runs"
    """What is deleted: runs, which go to MLflow's trash; or of them the models, the checkpoints or the pictures alone,
    which are gone for good. `mlflow gc` empties the trash, but leaves the models of its runs: delete these before."""
    older_than: Annotated[float, Field(ge=0)] | None = None
    """Days since the runs began, at least [default: any]."""
    model: str | None = None
    """Model of the runs [default: any]."""
    status: Literal["FINISHED", "FAILED", "KILLED"] | None = None
    """Status of the runs [default: any but RUNNING]."""
    report: Names = ()
    """Folders of reports whose runs stay, beside those in report, repeated or separated by commas."""
    dry_run: bool = False
    """Only list them."""
    yes: bool = False
    """Delete them without asking."""

    @model_validator(mode="after")
    def _of_some(self) -> Self:
        if self.older_than is None and self.model is None and self.status is None:
            raise ValueError("name the runs by older_than, model or status; older_than=0 is all of them")
        return self


class PromoteConfig(Settings):
    """Under which name and alias a run's model is registered."""

    name: str
    """Name of the registered model."""
    alias: str = "champion"
    """Alias that the version gets, if it is no worse on the validation split than the one that has it."""
    force: bool = False
    """Give it the alias all the same."""

    @field_validator("name")
    @classmethod
    def _registrable(cls, name: str) -> str:
        if set("/:") & set(name) or name.strip() in ("", ".", ".."):
            raise ValueError("should be a name without / and :")
        return name

    @field_validator("alias")
    @classmethod
    def _allowed(cls, alias: str) -> str:
        if not re.fullmatch(r"(?!latest$|v\d+$)[\w-]+", alias, re.IGNORECASE | re.ASCII):
            raise ValueError("should be letters, digits, - and _, but neither latest nor a number like v2")
        return alias


class StudyConfig(Settings):
    """How a study is carried out: how many trials, by whom, and where Optuna keeps them."""

    trials: Annotated[int, Field(gt=0)] | None = None
    """Finished or pruned trials that the study ends with, however often it was stopped [default: the study's]."""
    workers: Annotated[int, Field(gt=0)] = 1
    """Processes on this machine that work on trials at the same time."""
    population: Annotated[int, Field(gt=0)] = 1
    """Trials that each worker trains beside each other; on a GPU their steps are computed as one."""
    storage: str = "sqlite:///optuna.db"
    """URL of Optuna's database, sqlite:///FILE or postgresql+psycopg://USER@HOST/DATABASE."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the sampler: trial by trial the same suggestions for the same results before it."""
    heartbeat: Annotated[int, Field(gt=0)] = 10
    """Seconds between a trial's signs of life; one that is silent four times as long is failed and retried once."""
    executor: Literal["local", "ray"] = "local"
    """Who spreads the trials: processes on this machine, or Ray, one trial a task (needs elbolab[ray])."""
    address: str | None = None
    """Address of a running Ray cluster [default: one that is started on this machine]."""
    cpus_per_trial: Annotated[float, Field(gt=0)] = 1.0
    """CPUs that Ray reserves for a trial, which has as many threads."""
    gpus_per_trial: Annotated[float, Field(ge=0)] = 0.0
    """GPUs that Ray reserves for a trial; with 0.25 four trials share one."""
    sync: bool = False
    """Only bring MLflow up to date with Optuna, after an outage of the tracking server."""
    finalise: Annotated[int, Field(gt=0)] | None = None
    """Only train this many of the best configurations anew, choose one, and test and register it."""
    seeds: Annotated[int, Field(gt=1)] = 5
    """Fresh seeds on which finalise trains each configuration."""
    passes: Annotated[int, Field(gt=0)] | None = None
    """Most epochs of each training of a reproduction [default: as many as it says]."""
    only: Names = ()
    """Patterns of the trainings of a reproduction that are done, repeated or separated by commas [default: all]."""

    @field_validator("storage")
    @classmethod
    def _expanded(cls, url: str) -> str:
        file = url.removeprefix("sqlite:///")
        return f"sqlite:///{expanded(Path(file))}" if file.startswith("~") else url


class SuiteConfig(Settings):
    """What is given for the whole experiment."""

    out: WritableFolder = Path("report")
    """Folder of the report."""

    def shared_with(self, settings: type[Settings]) -> dict[str, Any]:
        """The given values whose fields ``settings`` has too."""
        given = self.model_dump(exclude_none=True)
        return {key: value for key, value in given.items() if key in settings.model_fields}


def _optional(*sources: type[Settings]) -> dict[str, Any]:
    """The fields of ``sources`` with their bounds and help, each absent by default."""
    return {
        name: (Annotated[(field.annotation | None, *field.metadata, Field(description=field.description))], None)
        for source in sources
        for name, field in source.model_fields.items()
    }


MainConfig = create_model("MainConfig", __base__=SuiteConfig, **_optional(EvaluateConfig, Config))
"""The whole experiment: what is given here is handed to every training and evaluation that has the field."""


class TrustConfig(Settings):
    """Whether the code of a model of the user's own is executed."""

    trust: bool | Path = False
    """Execute the code that came with the model of a run, where it is one of the user's own; with the path of a file
    only where the code is that of the file."""

    @field_validator("trust", mode="before")
    @classmethod
    def _said(cls, value: Any) -> Any:
        return {"true": True, "false": False}.get(value, value) if isinstance(value, str) else value

    @field_validator("trust")
    @classmethod
    def _expanded(cls, trust: bool | Path) -> bool | Path:
        return trust if isinstance(trust, bool) else expanded(trust)


class ResumeConfig(Settings):
    """Going on with a training that was interrupted, instead of beginning one."""

    resume: str | None = None
    """Run to go on with, in that run and from its newest state; its parameters stay [default: begin a run]."""
    new_run: bool = False
    """Whether to begin a run of its own, of the resumed run's parameters with those given changed."""

    @model_validator(mode="after")
    def _of_a_run(self) -> Self:
        if self.new_run and self.resume is None:
            raise ValueError("new_run=True needs resume, the run whose parameters it takes; add --resume RUN")
        return self
