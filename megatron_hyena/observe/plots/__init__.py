"""The plots of a run: training curves, the evaluation's comparison, and the genome's panels.

Each function writes one PNG by atomic rename, needs no display, and imports matplotlib only when
called. Figures that start far from where they end are cut to the part worth seeing, and say so.
"""

from megatron_hyena.observe.plots.corpus import plot_corpus
from megatron_hyena.observe.plots.evaluation import plot_evaluation
from megatron_hyena.observe.plots.merging import plot_merging
from megatron_hyena.observe.plots.position import plot_position
from megatron_hyena.observe.plots.training import plot_training

__all__ = ["plot_corpus", "plot_evaluation", "plot_merging", "plot_position", "plot_training"]
