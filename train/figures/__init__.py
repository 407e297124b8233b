"""The figures and tables of the two papers, one file for those that share an experiment.

A figure is a module with `SIZES`, its settings by size; `measure(settings, place) -> rows`, the numbers, a list of
dicts with the same keys; and `draw(rows, settings, figure)`, which puts them on a matplotlib figure. `place` is a
`Place`: where data lies, and where training runs may keep what they have done.

Names are `binom` for BinomMAML, `fob` for FO-B-MAML, and the number that the paper gives.
"""

from figures import (
    binom_bounds,
    binom_cost,
    binom_error,
    binom_training,
    fob_hyperparameters,
    fob_memory,
    fob_mnist1d,
    fob_omniglot,
    fob_quadratic,
)
from figures.place import Place

__all__ = ["FIGURES", "Place"]

FIGURES = {
    "binom_figure_2": binom_bounds,
    "binom_figure_3": binom_error,
    "binom_figure_4": binom_cost,
    "binom_table_1": binom_training,
    "fob_figure_1": fob_quadratic,
    "fob_figure_2": fob_mnist1d,
    "fob_figures_3_6": fob_memory,
    "fob_figures_4_5": fob_hyperparameters,
    "fob_table_2": fob_omniglot,
}
