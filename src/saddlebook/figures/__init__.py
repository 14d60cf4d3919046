"""Draws tables as figures and widgets; the only place with colours and markers."""

from saddlebook.figures.accuracy import class_accuracy as class_accuracy
from saddlebook.figures.accuracy import class_counts as class_counts
from saddlebook.figures.accuracy import curves as curves
from saddlebook.figures.accuracy import effects as effects
from saddlebook.figures.accuracy import methods as methods
from saddlebook.figures.accuracy import through_training as through_training
from saddlebook.figures.style import panels as panels
from saddlebook.figures.style import show as show
