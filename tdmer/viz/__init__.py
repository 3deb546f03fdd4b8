"""Pictures of training, features, predictions and weights; matplotlib is imported to draw one.

What is told apart is told apart by shape, line or hatching as well as by colour, so that pictures
can be read in grey. Those of one panel are drawn into ``axes``, or into a figure of their own that
belongs to no window, ``axes.figure``.
"""

from tdmer.viz._style import line_style
from tdmer.viz.agreement import confusion_matrix, predicted_scores, reliability
from tdmer.viz.branches import class_contributions, contributions, step_contributions
from tdmer.viz.curves import training_curves
from tdmer.viz.features import edge_graph, subspaces

__all__ = [
    "class_contributions",
    "confusion_matrix",
    "contributions",
    "edge_graph",
    "line_style",
    "predicted_scores",
    "reliability",
    "step_contributions",
    "subspaces",
    "training_curves",
]
