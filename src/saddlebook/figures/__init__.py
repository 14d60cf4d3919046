"""Draws tables as figures and widgets; the only place with colours and markers."""

from saddlebook.figures.accuracy import plot_cards as plot_cards
from saddlebook.figures.accuracy import plot_class_accuracy as plot_class_accuracy
from saddlebook.figures.accuracy import plot_class_counts as plot_class_counts
from saddlebook.figures.accuracy import plot_curves as plot_curves
from saddlebook.figures.accuracy import plot_effects as plot_effects
from saddlebook.figures.accuracy import plot_methods as plot_methods
from saddlebook.figures.accuracy import plot_through_training as plot_through_training
from saddlebook.figures.style import panels as panels
from saddlebook.figures.style import show as show
