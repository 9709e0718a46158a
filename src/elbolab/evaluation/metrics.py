"""Every metric, declared once: key, label, unit, direction, error, meaning, source; needs no torch."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from elbolab.support.statistics import is_unreliable

TRAIN, VAL, TEST = SPLITS = ("train", "val", "test")
EPOCHS, GAP, SIMULATED, OOD = (TRAIN, VAL), (TRAIN, TEST), "simulated", "ood"
PLACES = {"D": r"\d+", "N": r"(own|\d+)", "NAME": r"\w+", "FAMILY": r"[a-z]+", "DATASET": r"\w+"}
"""What may stand at a place of a name."""


@dataclass(frozen=True)
class Metric:
    """What is logged as ``SPLIT/name`` for each of ``splits``; its mean over images unless it says otherwise."""

    name: str
    """Name in its keys; a place such as ``{D}`` is filled by ``at``."""
    label: str
    """Head of its columns."""
    unit: str
    """``nats`` are of one image; ``share`` is of images, from 0 to 1; empty where it has none."""
    best: Literal["maximize", "minimize"] | None
    """Which direction is better; None where neither is."""
    meaning: str
    """One sentence or formula, in Markdown."""
    source: str = ""
    """Paper and equation."""
    splits: tuple[str, ...] = SPLITS
    """What stands before the name."""
    errors: tuple[str, ...] = ()
    """Names of its standard error, or of the ends of its 95% interval; ``{}`` is its own name."""
    doubt: str = ""
    """Name of the share of images whose Pareto k is too high for its estimate; ``{}`` is its own name."""
    digits: int = 2
    """Decimals that are shown."""

    def at(self, split: str, **places: object) -> str:
        """Its key of a split, such as ``test/log_px``; raises ValueError where it has none of that split."""
        if split not in self.splits:
            raise ValueError(f"metric {self.name!r} is of {', '.join(self.splits)}, not of {split!r}")
        return f"{split}/{self.name.format(**places)}"

    @property
    def error_names(self) -> tuple[str, ...]:
        """The names of its error."""
        return tuple(error.format(self.name) for error in self.errors)

    @property
    def names(self) -> tuple[str, ...]:
        """Its name and those of its error: the columns of a table."""
        return (self.name, *self.error_names)

    def covers(self, key: str) -> bool:
        """Whether a key is its own, of its error, or of the doubt about it."""
        split, _, name = key.partition("/")
        # A share of doubt that does not bear its name is a metric by itself.
        names = [*self.names, *([self.doubt.format(self.name)] if "{}" in self.doubt else [])]
        return split in self.splits and any(re.fullmatch(one.format(**PLACES), name) for one in names)


SE = ("{}_se",)

LOSS = Metric(
    "loss", "Loss", "nats", "minimize",
    "what is minimised: -E_q[log p(x\\|z)] + beta KL; for `iwae` minus its bound, for `hierarchical` minus that of "
    "log w = log p(x\\|z) + beta (log p(z) - log q(z\\|x)), for `semi_amortized` -ELBO at the "
    "refined q; for `cnn`, which alone has the third key, the cross-entropy", "Higgins et al. 2017, eq. 4",
)  # fmt: skip
ELBO = Metric(
    "elbo", "ELBO", "nats", "maximize",
    "E_q[log p(x\\|z)] - KL at one sample (`iwae`, `hierarchical`: at K), beta = 1 whatever the training's, KL in "
    "closed form where there is one", "Kingma & Welling 2014, eq. 3", EPOCHS,
)  # fmt: skip
IW_BOUND = Metric(
    "iw_bound", "Bound", "nats", "maximize",
    "`iwae` and `hierarchical`: log(1/K sum_k w_k) at K = `iw_samples`; its best epoch is that of the highest "
    "on validation images",
    "Burda et al. 2016, eq. 8", EPOCHS,
)  # fmt: skip
MSE = Metric(
    "mse", "Mean squared error", "per pixel", "minimize",
    "squared error of the expected image, mean over pixels (pixels in [0, 1])", "", EPOCHS,
)  # fmt: skip
KL = Metric("kl", "KL divergence", "nats", "minimize", "KL(q(z\\|x) ‖ p(z))", "", EPOCHS)
SIGMA = Metric(
    "sigma", "Sigma", "pixel range", None,
    "with `sigma=learned`: the standard deviation of the gaussian observation model, one for all pixels and images",
    "Rybkin et al. 2021", EPOCHS, digits=4,
)  # fmt: skip
ACCURACY = Metric("accuracy", "Accuracy", "share", "maximize", "`cnn`: share of right classes")
LR = Metric("lr", "Rate", "", None, "Adam's rate on the networks at the epoch's last step", "", (TRAIN,))
STEPS = Metric(
    "steps", "Steps", "", None, "optimiser steps since the training began; 0 for a closed form", "", (TRAIN,), digits=0
)
SECONDS = Metric(
    "seconds", "Seconds", "s", None,
    "time that training has taken since it began, validation, pictures and what an interruption undid left out", "",
    (TRAIN,), digits=0,
)  # fmt: skip
IMAGES_PER_S = Metric("images_per_s", "Images a second", "1/s", "maximize", "training images a second", "", (TRAIN,))
OBJECTIVE_NAME = Metric(
    "{NAME}", "Objective", "", None, "in a study's trials: the validation metric NAME by which the trial is judged", "",
    ("objective",),
)  # fmt: skip

LOG_PX = Metric(
    "log_px", "log p(x)", "nats", "maximize",
    "log p(x), exact or estimated for the evaluated images: the mean over all images of the split, by regression on "
    "the ELBO of each; its error is that of the regression and of the estimates",
    "Neal 2001; Cochran 1977, section 7.3", errors=SE, doubt="unreliable",
)  # fmt: skip
LOG_PX_EVALUATED = Metric(
    "log_px_evaluated", "log p(x), images like these", "nats", "maximize",
    "the plain mean over the evaluated images; its error is that of the mean over all images that could be", "",
    errors=SE, doubt="unreliable",
)  # fmt: skip
BITS_PER_DIM = Metric(
    "bits_per_dim", "Bits per dimension", "bits", "minimize",
    "-`log_px` / (D ln 2), D = C H W the numbers of an image: of likelihoods alone that are probabilities of the 256 "
    "values of a byte (`discretised_logistic`); a density has no such unit", "van den Oord et al. 2016",
    errors=SE, doubt="unreliable", digits=3,
)  # fmt: skip
LOG_PX_DIGIT = Metric(
    "log_px_digit_{D}", "log p(x)", "nats", "maximize", "log p(x) of the images of class D in the split", errors=SE
)
POSTERIOR_ELBO = Metric(
    "posterior_elbo", "ELBO", "nats", "maximize", "ELBO of the model's own q, the mean over the split as for `log_px`",
    "Kingma & Welling 2014, eq. 3",
)  # fmt: skip
JVI_1 = Metric(
    "jvi_1", "JVI-1", "nats", "maximize",
    "log p(x) from 100 samples of the model's own q by the jackknife, which takes the bias of the order 1/100 out: how "
    "far it is above the ELBO and below `log_px` says what samples of q miss; no bound, the mean over the split as for "
    "`log_px`", "Nowozin 2018, section 3", errors=SE,
)  # fmt: skip
JVI_2 = replace(JVI_1, name="jvi_2", label="JVI-2", meaning="the same by the jackknife of second order")
STD_ERR = Metric(
    "std_err", "Error of an image", "nats", "minimize",
    "standard error of an image's log p(x): the median over images", "Burda et al. 2016, eq. 8",
)  # fmt: skip
ESS = Metric(
    "ess", "Median ESS", "samples", "maximize",
    "effective sample size of the weights, (sum w_s)² / sum w_s², of samples or of annealed chains: the median over "
    "images", "Kong 1992", digits=0,
)  # fmt: skip
PARETO_K = Metric(
    "pareto_k", "Pareto k", "", "minimize",
    "Pareto k of the largest importance weights: the median over images; absent where that is infinite (fewer than 25 "
    "samples, equal weights) or where some images were annealed", "Vehtari et al. 2024, section 3",
)  # fmt: skip
UNRELIABLE = Metric(
    "unreliable", "Unreliable", "share", "minimize",
    "share of images whose estimate misses the tolerance or has weights of too large a variance (with "
    "`method=importance`: whose k is above min(1 - 1/log10 S, 0.7)); above a half the mean is unreliable",
    "Vehtari et al. 2024, section 3.2",
)  # fmt: skip
BIAS = Metric(
    "bias", "Bias at most", "nats", "minimize",
    "on images that the model makes, an upper bound of log p(x) less the estimate, which is a lower one, both in "
    "expectation: what the estimate may be too low", "Grosse et al. 2015, section 4.2", ("simulated",), SE,
)  # fmt: skip
LOG_PX_CONSTANT = Metric(
    "log_px_constant", "log p(x)", "nats", "maximize", "log p(x) if every image were decoded to the mean training image"
)

ACCURACY_ORIGINAL = Metric(
    "accuracy_original", "Accuracy, originals", "share", "maximize", "the cnn's share of right classes on images"
)
ACCURACY_RECONSTRUCTION = Metric(
    "accuracy_reconstruction", "Accuracy, reconstructions", "share", "maximize", "and on their reconstructions"
)
CLASS_PRESERVATION = Metric(
    "class_preservation", "Class kept", "share", "maximize",
    "share of images whose reconstruction the cnn puts into the class of the original; its 95% interval is "
    "the score interval over images", "Wilson 1927", errors=("{}_low", "{}_high"),
)  # fmt: skip

ACTIVE_UNITS = Metric(
    "active_units", "Active units", "dimensions", None,
    "latent dimensions d with Var_x(E_q[z_d \\| x]) > 0.01 over the evaluated images",
    "Burda et al. 2016, section 5.2", digits=0,
)  # fmt: skip
RATE = Metric(
    "rate", "Rate", "nats", None,
    "E_x KL(q(z\\|x) ‖ p(z)) under inferred posteriors: in closed form, or over ten samples an image where there is "
    "none, as the run's tag `evaluation.rate` says", "Alemi et al. 2018", errors=SE,
)  # fmt: skip
DISTORTION = Metric(
    "distortion", "Distortion", "nats", "minimize",
    "-E_x E_q[log p(x\\|z)], ten samples an image: -(rate + distortion) is the ELBO; in a study's trials -ELBO - KL",
    "Alemi et al. 2018, eq. 4",
)  # fmt: skip
AGGREGATE_KL = Metric(
    "aggregate_kl", "Aggregate KL", "nats", "minimize",
    "KL(q(z) ‖ p(z)) of the aggregate posterior q(z) of the evaluated images: rate less mutual information, the latter "
    "the mean of log q(z\\|x_n) - log(1/N sum_m q(z\\|x_m)) over z ~ q(z\\|x_n), at most log N",
    "Hoffman & Johnson 2016",
)  # fmt: skip

LOG_PX_AIS = Metric(
    "log_px_ais", "Annealed", "nats", "maximize",
    "with `ais_distributions` too: log p(x) by annealed importance sampling, the log of the mean over chains of "
    "exp(sum_t (beta_t - beta_(t-1)) (log p(x, z_(t-1)) - log start(z_(t-1))))", "Neal 2001, eq. 11; Wu et al. 2017",
    GAP, SE,
)  # fmt: skip
AIS_ACCEPTANCE = Metric(
    "ais_acceptance", "Accepted", "share", None,
    "acceptance of its Hamiltonian moves, steered to 65 %: far below it the moves get nowhere and the estimate is too "
    "low", "Neal 2011, section 4.4", GAP,
)  # fmt: skip
GAP_LOG_PX = Metric(
    "gap_log_px", "log p(x)", "nats", "maximize",
    "with `gap_images`: log p(x) as quoted, or exact, or the larger of that and annealed from the prior: what the gaps "
    "are measured from; it and what follows are means over the split by regression, as `log_px`", "", GAP, SE,
)  # fmt: skip
ELBO_BEST = Metric(
    "elbo_best", "L[q*]", "nats", "maximize",
    "their ELBO under q*, the best q of the family that a search finds for each, q itself counted", "", GAP, SE,
)  # fmt: skip
GAP_ELBO = Metric("gap_elbo", "L[q]", "nats", "maximize", "and under q", "", GAP, SE)
APPROXIMATION_GAP = Metric(
    "approximation_gap", "Approximation", "nats", "minimize", "log p(x) - L[q*]", "Cremer et al. 2018, eq. 6", GAP, SE
)
ELBO_BEST_OF = replace(
    ELBO_BEST, name="elbo_best_of_{FAMILY}", label="L[q*]",
    meaning="with `local_family=all`: the same of each family of posteriors, whichever is the model's",
)  # fmt: skip
APPROXIMATION_GAP_OF = replace(
    APPROXIMATION_GAP, name="approximation_gap_of_{FAMILY}", meaning="and log p(x) less that"
)
AMORTIZATION_GAP = Metric(
    "amortization_gap", "Amortization", "nats", "minimize", "L[q*] - L[q]", "Cremer et al. 2018, eq. 7", GAP, SE
)
INFERENCE_GAP = Metric(
    "inference_gap", "Sum", "nats", "minimize", "their sum, log p(x) - L[q]", "Cremer et al. 2018, eq. 5", GAP, SE
)
LOG_PX_LOWER = Metric(
    "log_px_lower", "Lower bound", "nats", None, "lower bound on log p(x) of as many images that the model makes",
    "Grosse et al. 2015, section 4.2", (SIMULATED,),
)  # fmt: skip
LOG_PX_UPPER = Metric(
    "log_px_upper", "Upper bound", "nats", None,
    "and an upper one, from the reverse chain that begins at the z that made x", LOG_PX_LOWER.source, (SIMULATED,),
)  # fmt: skip
BDMC_GAP = Metric(
    "bdmc_gap", "Distance", "nats", "minimize", "and their distance", LOG_PX_LOWER.source, (SIMULATED,)
)  # fmt: skip

FRECHET_DISTANCE = Metric(
    "frechet_distance", "Fréchet distance", "", "minimize",
    "\\|m - m'\\|² + tr(C + C' - 2 (C C')^(1/2)) of the means and covariances of the cnn's features of as many decoded "
    "samples and test images", "Heusel et al. 2017, eq. 6", (TEST,),
)  # fmt: skip
KID = Metric(
    "kid", "KID", "", "minimize",
    "squared maximum mean discrepancy under (x·y / F + 1)³, unbiased; mean over 100 subsets of half the images, at "
    "most 500; its error is the delete-(N - m) jackknife (Shao & Wu 1989), sqrt(m / (N - m)) standard deviations over "
    "the subsets of m of N, too large where both sets are alike, as real images are", "Binkowski et al. 2018", (TEST,),
    SE, digits=4,
)  # fmt: skip
PRECISION = Metric(
    "precision", "Precision", "share", "maximize",
    "share of samples in the ball of any test image; a ball reaches to the fifth neighbour in its own set",
    "Kynkäänniemi et al. 2019, eq. 2", (TEST,),
)  # fmt: skip
RECALL = replace(PRECISION, name="recall", label="Recall", meaning="share of test images in the ball of any sample")
DENSITY = Metric(
    "density", "Density", "", "maximize", "test images whose ball holds a sample, mean over samples, over 5",
    "Naeem et al. 2020", (TEST,),
)  # fmt: skip
COVERAGE = Metric(
    "coverage", "Coverage", "share", "maximize", "share of test images whose ball holds any sample",
    "Naeem et al. 2020", (TEST,),
)  # fmt: skip

AUROC_LOG_PX = Metric(
    "auroc_log_px_{DATASET}", "By log p(x)", "AUROC", "maximize",
    "with `ood`: the probability that a test image of the data set DATASET is scored as less likely than one of the "
    "model's own data, ties counted half: by log p(x); below 0.5 the model finds the other data likelier; its error is "
    "DeLong's, 0 where the scores do not overlap, and `…_unreliable` the share of images whose estimate is, the larger "
    "of both sets'",
    "Nalisnick et al. 2019; DeLong et al. 1988", (OOD,), SE, "{}_unreliable", digits=3,
)  # fmt: skip
AUROC_ELBO = Metric(
    "auroc_elbo_{DATASET}", "By ELBO", "AUROC", "maximize", "the same by the ELBO of the model's own q",
    "DeLong et al. 1988", (OOD,), SE, digits=3,
)  # fmt: skip
AUROC_REGRET = Metric(
    "auroc_regret_{DATASET}", "By regret", "AUROC", "maximize",
    "the same by the likelihood regret, of which more is less likely; 0.5 for exact posteriors, which have none",
    "Xiao et al. 2020", (OOD,), SE, digits=3,
)  # fmt: skip
AUROC_COMPLEXITY = Metric(
    "auroc_complexity_{DATASET}", "By complexity", "AUROC", "maximize",
    "the same by log p(x) plus the length of the image as a PNG, in nats, since simple images are likelier under any "
    "model; meant for likelihoods of whole 8-bit or binary pixels: beside a Gaussian of wide sigma it outweighs "
    "log p(x)",
    "Serrà et al. 2020", (OOD,), SE, "{}_unreliable", digits=3,
)  # fmt: skip
REGRET = Metric(
    "regret", "Regret", "nats", None,
    "with `ood`: likelihood regret, the ELBO under the best q that steps from the model's own find for an image alone "
    "less that under its own, mean over the evaluated images", "Xiao et al. 2020", (TEST,), SE,
)  # fmt: skip
OOD_REGRET = Metric(
    "regret_{DATASET}", "Regret, other data", "nats", None, "and over as many images of the other data set", "",
    (OOD,), SE,
)  # fmt: skip
OOD_LOG_PX = Metric(
    "log_px_{DATASET}", "log p(x), other data", "nats", None, "mean log p(x) of the same, beside `log_px_evaluated`",
    "", (OOD,), SE, "{}_unreliable",
)  # fmt: skip

NLL_5000 = Metric(
    "nll_5000", "-L_5000", "nats", "minimize",
    "study `burda2016`: the mean of -L_100 over all test images and of L_100 - L_5000 over the evaluated ones, whose "
    "errors are added as if these were others", "Burda et al. 2016, section 5", (TEST,), SE, "{}_unreliable",
)  # fmt: skip
IW_BOUND_OF = Metric(
    "iw_bound_{D}", "L_K", "nats", "maximize",
    "study `nowozin2018`: log(1/K sum_k w_k) of D = K samples of q, mean over all test images",
    "Burda et al. 2016, eq. 8", (TEST,), SE,
)  # fmt: skip
JVI_1_OF = replace(
    IW_BOUND_OF, name="jvi_1_{D}", label="JVI-1", meaning="and from the same samples by the jackknife",
    source="Nowozin 2018, section 3",
)  # fmt: skip
JVI_2_OF = replace(JVI_1_OF, name="jvi_2_{D}", label="JVI-2", meaning="and by the jackknife of second order")
LOG_PX_5000 = Metric(
    "log_px_5000", "L_5000", "nats", "maximize",
    "study `vampprior2018`: log(1/5000 sum_k w_k) of samples of q, mean over the evaluated test images",
    "Burda et al. 2016, eq. 8", (TEST,), SE,
)  # fmt: skip
BITS_PER_DIM_5000 = Metric(
    "bits_per_dim_5000", "Bits per dimension, L_5000", "bits", "minimize",
    "and that in bits, as `bits_per_dim`", BITS_PER_DIM.source, (TEST,), SE, digits=3,
)  # fmt: skip
ELBO_FIT = Metric(
    "elbo_fit_{N}", "ELBO", "nats", "maximize",
    "study `amortized_vs_latent`: the ELBO of 200 test images under the model's own q (`own`), and under posteriors "
    "fitted to its decoder in N steps", "", (TEST,), SE,
)  # fmt: skip

REPRESENTATION = (ACTIVE_UNITS, RATE, DISTORTION, AGGREGATE_KL)
GAP_COLUMNS = {
    one.name.removeprefix("gap_"): one
    for one in (LOG_PX_AIS, GAP_LOG_PX, ELBO_BEST, GAP_ELBO, APPROXIMATION_GAP, AMORTIZATION_GAP, INFERENCE_GAP)
}
"""What is the mean of each column of ``gap.parquet``."""
OOD_SCORES = {
    "log_px": AUROC_LOG_PX, "elbo": AUROC_ELBO, "regret": AUROC_REGRET, "complexity": AUROC_COMPLEXITY
}  # fmt: skip
"""The AUROC of each score."""
FIDELITY = (FRECHET_DISTANCE, KID, PRECISION, RECALL, DENSITY, COVERAGE)


def _with_suffix(metric: Metric, end: str, meaning: str, split: str, errors: tuple[str, ...]) -> Metric:
    doubt = metric.doubt + end if metric.doubt else ""
    return replace(metric, name=metric.name + end, meaning=meaning, splits=(split,), errors=errors, doubt=doubt)


STORED = {
    one: _with_suffix(one, "_table", "the same from the rows of a model's own training table", TRAIN, one.errors)
    for one in (LOG_PX, PARETO_K, UNRELIABLE, POSTERIOR_ELBO, *GAP_COLUMNS.values())
}
"""Of a metric under inferred posteriors, that under those which training left for these very images."""
FITTED = {
    one: replace(
        one,
        name=f"fitted_{one.name}",
        meaning="the same under posteriors fitted to the decoder of a model with an encoder, as `latent_opt` by "
        "default fits an image without a row",
        splits=(TEST,),
    )
    for one in (POSTERIOR_ELBO, ACCURACY_RECONSTRUCTION, CLASS_PRESERVATION)
}
"""Of a metric under an encoder's posteriors, that under those fitted to its decoder."""
REAL_IMAGES = {
    one: _with_suffix(
        one,
        "_floor",
        "the same of training images in the samples' place: what real images reach, which is the least of a distance, "
        "and of the others the most, that is expected of samples",
        TEST,
        tuple(f"{name}_floor" for name in one.names[1:]),
    )
    for one in FIDELITY
}
"""Of a metric of samples beside test images, that of training images beside them."""
METRICS = (
    *(one for one in list(globals().values()) if isinstance(one, Metric)),
    *STORED.values(),
    *FITTED.values(),
    *REAL_IMAGES.values(),
)
"""All of them, in the order of the page."""


def find_metric(key: str) -> Metric | None:
    """The metric that a key belongs to, None where it is not declared here, such as that of a user's evaluator."""
    return next((metric for metric in METRICS if metric.covers(key)), None)


def is_doubtful(metrics: Mapping[str, float], key: str) -> bool:
    """Whether most images of the mean ``key``, among a run's ``metrics``, have too high a Pareto k.

    Of a key that is not declared the share is looked for as ``KEY_unreliable``.
    """
    split, _, name = key.partition("/")
    metric = find_metric(key)
    share = metric.doubt if metric and metric.doubt else "{}_unreliable"
    return is_unreliable(metrics.get(f"{split}/{share.format(name)}", 0.0))
