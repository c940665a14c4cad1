"""Settings of the data road: mistakes are explained, every field has a description."""

from __future__ import annotations

from pathlib import Path

import pytest

from tubelet.config import parse
from tubelet.data.settings import AugmentSettings, DataSettings, Views
from tubelet.errors import ConfigError


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"frames": 0}, "frames: .*greater than or equal to 1"),
        ({"size": [0, 4]}, r"size must be 1\.\.8192"),
        ({"workers": -1}, r"workers must be 0\.\.512 or auto"),
        ({"cache": "device", "workers": 2}, "workers must be 0 or auto with cache = device"),
        ({"fps": 5, "sampling": "tsn"}, "fps works with sampling = window only, not tsn"),
        ({"multiscale": [0.5, 1.0]}, "largest first"),
        ({"multiscale": []}, "largest first"),
        ({"area": [0.5, 0.1]}, "low <= high"),
        ({"area": [0.5, 1.5]}, "not above 1"),
        ({"strde": 2}, "did you mean 'stride'"),
        ({"max_bad_rate": 2}, "max_bad_rate"),
        ({"augment": {"flip": -1}}, r"augment\.flip"),
    ],
)
def test_mistakes(data: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(DataSettings, data)


@pytest.mark.parametrize("cls", [DataSettings, AugmentSettings, Views])
def test_every_field_is_described(cls: type) -> None:
    assert all((field.description or "").endswith(".") for field in cls.model_fields.values())


@pytest.mark.parametrize(("cls", "prefix"), [(DataSettings, ""), (AugmentSettings, "augment."), (Views, "views.")])
def test_the_page_for_users_has_every_setting_with_its_description(cls: type, prefix: str) -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    rows = {
        line.split("|")[1].strip(): line.split("|")[3].strip()
        for line in page.splitlines()
        if line.startswith("| `") and line.count("|") == 4
    }
    for name, field in cls.model_fields.items():
        assert rows[f"`{prefix}{name}`"] == field.description


def test_sizes() -> None:
    assert DataSettings(size=112).hw == (112, 112)
    assert DataSettings(size=(96, 128)).hw == (96, 128)
    assert DataSettings(size=(96, 128)).short_side == 111
    assert DataSettings(cache_size=50).short_side == 50
