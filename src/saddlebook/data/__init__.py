"""Reads image datasets, draws their long tail and brings batches to the network."""

from saddlebook.data.augmentation import EpochPlan as EpochPlan
from saddlebook.data.augmentation import all_views as all_views
from saddlebook.data.augmentation import augment as augment
from saddlebook.data.augmentation import crop_flip as crop_flip
from saddlebook.data.augmentation import epoch_order as epoch_order
from saddlebook.data.augmentation import epoch_plan as epoch_plan
from saddlebook.data.augmentation import normalise as normalise
from saddlebook.data.augmentation import padding as padding
from saddlebook.data.augmentation import resize as resize
from saddlebook.data.augmentation import view_count as view_count
from saddlebook.data.augmentation import view_numbers as view_numbers
from saddlebook.data.folders import counted as counted
from saddlebook.data.folders import groups as groups
from saddlebook.data.folders import to_folders as to_folders
from saddlebook.data.longtail import CACHE as CACHE
from saddlebook.data.longtail import Dataset as Dataset
from saddlebook.data.longtail import class_counts as class_counts
from saddlebook.data.longtail import class_groups as class_groups
from saddlebook.data.longtail import load as load
from saddlebook.data.longtail import long_tail as long_tail
from saddlebook.data.longtail import long_tail_indices as long_tail_indices
