"""The sections of a dataset's part of the page, in order: a new one is a file here and a line in ``SECTIONS``."""

from collections.abc import Callable

from elbolab.report.blocks import Block
from elbolab.report.collect import Comparison
from elbolab.report.sections.ablations import ablation_blocks
from elbolab.report.sections.classifiers import classifier_blocks
from elbolab.report.sections.latent import latent_blocks
from elbolab.report.sections.latent_space import latent_space_blocks
from elbolab.report.sections.likelihood import likelihood_blocks
from elbolab.report.sections.out_of_distribution import ood_blocks
from elbolab.report.sections.trust import trust_blocks

SECTIONS: dict[str, Callable[[Comparison], list[Block]]] = {
    "Classifiers": classifier_blocks,
    "Latent-variable models": latent_blocks,
    "Likelihood": likelihood_blocks,
    "How far to trust it": trust_blocks,
    "Latent space and samples": latent_space_blocks,
    "Out of distribution": ood_blocks,
    "Ablations": ablation_blocks,
}
"""What gives the blocks of each, by its title; one without blocks is left out."""
