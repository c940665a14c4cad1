"""The public functions, one file a concern. Each command of the command line is a thin face of one of them."""

from tubelet.api.features import embed, knn, probe
from tubelet.api.listing import make_playground, recipes, show_recipe
from tubelet.api.loading import Loaded, load
from tubelet.api.pretraining import pretrain

__all__ = ["Loaded", "embed", "knn", "load", "make_playground", "pretrain", "probe", "recipes", "show_recipe"]
