"""RandAugment: each operation is Pillow's, magnitudes are timm's, all frames of a clip get the same, and batches do not matter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from tubelet.config import parse
from tubelet.core import CounterDraw
from tubelet.data.randaugment import FILL, OPERATIONS, Choice, choose, rand_augment
from tubelet.data.settings import AugmentSettings, RandPolicy, rand_policy
from tubelet.errors import ConfigError

VIDEOMAE = "rand-m7-n4-mstd0.5-inc1"
H, W = 37, 52
GREY = (128, 128, 128)


def frames() -> list[Image.Image]:
    """Noise, a smooth picture of few levels, one level, black with a corner: what operations that measure can stumble over."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:H, :W]
    smooth = np.stack([60 + y, 40 + x, 90 + (x + y) // 2], -1).astype(np.uint8)
    corner = np.zeros((H, W, 3), np.uint8)
    corner[:5, :4] = (255, 128, 7)
    flat = np.full((H, W, 3), 77, np.uint8)
    return [Image.fromarray(a) for a in (random.integers(0, 256, (H, W, 3), np.uint8), smooth, flat, corner)]


def clip(pictures: list[Image.Image]) -> torch.Tensor:
    """(1, 3, T, H, W) in [0, 1]."""
    return torch.from_numpy(np.stack([np.asarray(p) for p in pictures])).permute(3, 0, 1, 2)[None].float() / 255


def affine(*matrix: float) -> Callable[[Image.Image], Image.Image]:
    return lambda p: p.transform(p.size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.BILINEAR, fillcolor=GREY)


def added(amount: int) -> Callable[[Image.Image], Image.Image]:
    table = [min(255, i + amount) if i < 128 else i for i in range(256)]
    return lambda p: p.point(table * 3)


PILLOW: list[tuple[str, float, Callable[[Image.Image], Image.Image]]] = [
    ("auto_contrast", 0, ImageOps.autocontrast),
    ("equalize", 0, ImageOps.equalize),
    ("invert", 0, ImageOps.invert),
    *[("rotate", d, lambda p, d=d: p.rotate(d, resample=Image.Resampling.BILINEAR, fillcolor=GREY)) for d in (-30.0, 21.5)],
    *[("posterize", b, lambda p, b=b: ImageOps.posterize(p, b)) for b in (1, 2, 4)],
    *[("solarize", t, lambda p, t=t: ImageOps.solarize(p, t)) for t in (0, 77, 200, 256)],
    *[("solarize_add", a, added(a)) for a in (0, 77, 110)],
    *[("color", f, lambda p, f=f: ImageEnhance.Color(p).enhance(f)) for f in (0.1, 0.37, 1.0, 1.63)],
    *[("contrast", f, lambda p, f=f: ImageEnhance.Contrast(p).enhance(f)) for f in (0.1, 0.37, 1.0, 1.63)],
    *[("brightness", f, lambda p, f=f: ImageEnhance.Brightness(p).enhance(f)) for f in (0.1, 0.37, 1.0, 1.63)],
    *[("sharpness", f, lambda p, f=f: ImageEnhance.Sharpness(p).enhance(f)) for f in (0.1, 0.37, 1.0, 1.63)],
    *[("shear_x", f, affine(1, f, 0, 0, 1, 0)) for f in (-0.21, 0.3)],
    *[("shear_y", f, affine(1, 0, 0, f, 1, 0)) for f in (-0.21, 0.3)],
    *[("translate_x", s, affine(1, 0, s * W, 0, 1, 0)) for s in (-0.315, 0.45)],
    *[("translate_y", s, affine(1, 0, 0, 0, 1, s * H)) for s in (-0.315, 0.45)],
]


@pytest.mark.parametrize(("name", "amount", "pillow"), PILLOW, ids=[f"{name} {amount:g}" for name, amount, _ in PILLOW])
def test_an_operation_is_pillows_to_one_level(name: str, amount: float, pillow: Callable[[Image.Image], Image.Image]) -> None:
    pictures = frames()
    ours = OPERATIONS[name].apply(clip(pictures), torch.tensor([amount]))
    theirs = clip([pillow(p) for p in pictures])
    assert ours.shape == theirs.shape
    assert float((ours - theirs).abs().max()) <= 1 / 255 + 1e-5
    assert ours.min() >= 0
    assert ours.max() <= 1


def test_every_operation_is_compared_with_pillow() -> None:
    assert {name for name, _, _ in PILLOW} == set(OPERATIONS)
    assert len(OPERATIONS) == 15


def test_each_clip_has_its_own_amount() -> None:
    one = clip(frames())
    for name, amounts in {"rotate": (5.0, -20.0), "posterize": (2.0, 4.0), "color": (0.2, 1.7), "translate_y": (0.1, -0.3)}.items():
        apply = OPERATIONS[name].apply
        both = apply(torch.cat([one, one]), torch.tensor(amounts))
        for i, amount in enumerate(amounts):
            assert torch.equal(both[i], apply(one, torch.tensor([amount]))[0]), name


def test_magnitudes_are_timms() -> None:
    """At magnitude 7, increasing and not; signs where an operation has two directions."""
    expected = {
        "rotate": (21, -21), "posterize": (2, 2), "solarize": (77, 77), "solarize_add": (77, 77), "color": (1.63, 0.37),
        "contrast": (1.63, 0.37), "brightness": (1.63, 0.37), "sharpness": (1.63, 0.37), "shear_x": (0.21, -0.21), "shear_y": (0.21, -0.21),
        "translate_x": (0.315, -0.315), "translate_y": (0.315, -0.315), "auto_contrast": (0, 0), "equalize": (0, 0), "invert": (0, 0),
    }  # fmt: skip
    for name, (plus, minus) in expected.items():
        assert OPERATIONS[name].amount(7.0, 1.0, True) == pytest.approx(plus), name
        assert OPERATIONS[name].amount(7.0, -1.0, True) == pytest.approx(minus), name
    plain = {"posterize": 2, "solarize": 179, "color": 1.36, "contrast": 1.36, "brightness": 1.36, "sharpness": 1.36}
    for name, amount in plain.items():
        assert OPERATIONS[name].amount(7.0, -1.0, False) == pytest.approx(amount), name
    assert [OPERATIONS["posterize"].amount(v, 1.0, True) for v in (0.0, 5.0, 10.0)] == [4, 2, 0]
    assert [OPERATIONS["solarize"].amount(v, 1.0, True) for v in (0.0, 10.0)] == [256, 0]


def test_the_policy_is_drawn_as_its_name_says() -> None:
    policy = rand_policy(VIDEOMAE)
    assert policy == RandPolicy(magnitude=7, ops=4, std=0.5, increasing=True, chance=0.5)
    turns = choose(policy, CounterDraw(3, torch.arange(4000)))
    assert len(turns) == 4
    done = [c for turn in turns for c in turn]
    assert len(done) / 16000 == pytest.approx(0.5, abs=0.02), "each operation is done with a chance of one half"
    assert min(Counter(c.name for c in done).values()) > 0.8 * len(done) / 15
    degrees = np.array([c.amount for c in done if c.name == "rotate"])
    assert np.abs(degrees).mean() == pytest.approx(21, abs=0.3)
    assert np.abs(degrees).std() == pytest.approx(1.5, abs=0.2)
    assert (degrees > 0).mean() == pytest.approx(0.5, abs=0.08)
    wild = choose(rand_policy("rand-m9-n1-mstd10-p1"), CounterDraw(3, torch.arange(500)))
    assert len(wild) == 1
    assert len(wild[0]) == 500
    assert max(abs(c.amount) for c in wild[0] if c.name == "rotate") == 30, "magnitudes stay in 0..10"


def test_all_frames_get_the_same() -> None:
    still = clip(frames()[:1]).expand(64, -1, 5, -1, -1)
    out = rand_augment(still, choose(rand_policy(VIDEOMAE), CounterDraw(0, torch.arange(64))))
    assert torch.equal(out, out[:, :, :1].expand_as(out))
    changed = (out != still).flatten(1).any(1)
    assert 0.8 < float(changed.float().mean()) < 1
    assert len({out[i].sum().item() for i in range(64)}) > 50, "clips differ from each other"


def test_a_clip_is_the_same_in_any_batch() -> None:
    clips = torch.rand(12, 3, 2, 17, 23, generator=torch.Generator().manual_seed(0))
    policy = rand_policy(VIDEOMAE)

    def augmented(rows: list[int]) -> torch.Tensor:
        return rand_augment(clips[rows], choose(policy, CounterDraw(5, torch.tensor(rows))))

    together = augmented(list(range(12)))
    assert torch.equal(torch.cat([augmented(list(range(a, a + 3))) for a in range(0, 12, 3)]), together)
    assert torch.equal(augmented([7, 2]), together[[7, 2]])


def test_the_clip_that_is_given_stays_as_it_is() -> None:
    x = clip(frames())
    before = x.clone()
    out = rand_augment(x, [[Choice(0, "invert", 0.0)], [], [Choice(0, "translate_x", 0.45)]])
    assert torch.equal(x, before)
    assert torch.allclose(out[..., -1], torch.tensor(FILL)), "what moves in from outside is grey"
    assert torch.equal(rand_augment(x, [[], []]), x)


@pytest.mark.parametrize("text", ["rand", "rand-n3", "rand-m9-mstd0.5-inc1", "rand-inc0-p0.3"])
def test_names_may_leave_parts_out(text: str) -> None:
    assert parse(AugmentSettings, {"rand": text}).rand == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rand-m7-x4", "augment.rand: 'x4' of 'rand-m7-x4' is not understood; write it as timm does, such as rand-m7-n4-mstd0.5-inc1"),
        ("m7-n4", "'m7-n4' is not understood"),
        ("rand-m7-m8", "'m8' of"),
        ("rand-m11", "out of range"),
        ("rand-n2.5", "out of range"),
        ("rand-inc2", "out of range"),
        ("rand-m7-w0", "'w0' of"),
    ],
)
def test_a_name_that_is_not_understood(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("augment.", "")):
        parse(AugmentSettings, {"rand": text})
