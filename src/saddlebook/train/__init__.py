"""Trains experiments: one run or many side by side, resumable at every epoch."""

from saddlebook.train.loop import ALIKE as ALIKE
from saddlebook.train.loop import Outcome as Outcome
from saddlebook.train.loop import Watcher as Watcher
from saddlebook.train.loop import alike as alike
from saddlebook.train.loop import train as train
