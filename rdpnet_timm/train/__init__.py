"""A compact trainer for small images: ``python -m rdpnet_timm.train --help``."""

from .data import Images, read_data
from .recipe import RECIPES, Recipe
from .trainer import Evaluation, Result, Run, evaluate, train

__all__ = ["RECIPES", "Evaluation", "Images", "Recipe", "Result", "Run", "evaluate", "read_data", "train"]
