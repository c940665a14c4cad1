"""The public functions, one file a concern. Each command of the command line is a thin face of one of them."""

from tubelet.api.benching import bench_data
from tubelet.api.captioning import Captioned, caption
from tubelet.api.checking import check
from tubelet.api.classifiers import LoadedClassifier, load_classifier
from tubelet.api.converting import Converted, convert
from tubelet.api.exporting import Exported, export
from tubelet.api.features import embed, knn, probe
from tubelet.api.finetuning import Finetuned, evaluate, finetune
from tubelet.api.language import retrieve, zeroshot
from tubelet.api.listing import make_playground, recipes, show_recipe
from tubelet.api.loading import Loaded, load
from tubelet.api.picturing import reconstruct
from tubelet.api.planning import plan
from tubelet.api.preparing import Prepared, merge_prepared, prepare
from tubelet.api.pretraining import pretrain
from tubelet.api.replaying import Replay, replay
from tubelet.api.reporting import report
from tubelet.api.showing import guide, masks

__all__ = [
    "Captioned",
    "Converted",
    "Exported",
    "Finetuned",
    "Loaded",
    "LoadedClassifier",
    "Prepared",
    "Replay",
    "bench_data",
    "caption",
    "check",
    "convert",
    "embed",
    "evaluate",
    "export",
    "finetune",
    "guide",
    "knn",
    "load",
    "load_classifier",
    "make_playground",
    "masks",
    "merge_prepared",
    "plan",
    "prepare",
    "pretrain",
    "probe",
    "recipes",
    "reconstruct",
    "replay",
    "report",
    "retrieve",
    "show_recipe",
    "zeroshot",
]
