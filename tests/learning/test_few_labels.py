"""Few labels are enough after pre-training: the experiment behind docs/finetuning.md, one seed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

EXPERIMENT = Path(__file__).parents[2] / "experiments" / "few_labels.py"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_few_labels_suffice_after_pretraining(tmp_path):
    spec = importlib.util.spec_from_file_location("few_labels", EXPERIMENT)
    assert spec is not None
    assert spec.loader is not None
    experiment = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(experiment)

    _, few, run = experiment.prepare(tmp_path)
    found = dict(experiment.compare(run, few, tmp_path, seed=0))
    assert found["pre-trained"].low > 0.35, str(found["pre-trained"])
    assert found["random"].high < 0.25, str(found["random"])
