"""A compact trainer for small images: ``rdpnet train --help``."""

from .data import Images, read_data
from .evaluation import Evaluation, evaluate
from .recipe import RECIPES, Recipe
from .run import Run
from .trainer import Job, Result, train, train_together

__all__ = [
    "RECIPES", "Evaluation", "Images", "Job", "Recipe", "Result", "Run", "evaluate", "read_data", "train",
    "train_together",
]  # fmt: skip
