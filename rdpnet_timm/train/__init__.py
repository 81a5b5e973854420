"""A compact trainer for small images: ``rdpnet train --help``."""

from .data import Images, read_data
from .recipe import RECIPES, Recipe
from .trainer import Evaluation, Job, Result, Run, evaluate, train, train_together

__all__ = [
    "RECIPES", "Evaluation", "Images", "Job", "Recipe", "Result", "Run", "evaluate", "read_data", "train",
    "train_together",
]  # fmt: skip
