"""Toys that need what the 29 systems need of the loop. Each is small; each must train and resume exactly."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import pytest
import torch
from harness import ToyFeed, check_resumes, train
from torch import nn
from torch.nn import functional as F

from tubelet.core import Batch, Frozen, Group, Losses, Mask, Masker, Step, Stream, TokenGrid, Tokens, Trainable
from tubelet.errors import CheckpointError
from tubelet.objectives.losses import reduce
from tubelet.train.loop import fit
from tubelet.train.settings import TrainSettings


def vectors(draw, n):
    return {"video": Stream(draw.normal("x", 6))}, {"class": draw.integers("y", 3)}


class Gan(Trainable):
    """Two phases in unequal order: the critic steps twice, the generator once and only every second step."""

    def __init__(self):
        super().__init__()
        self.generator, self.critic = nn.Linear(4, 6), nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))

    def phases(self):
        return {"critic": self.critic, "generator": self.generator}

    def groups(self, phase):
        return [Group(list(self.phases()[phase].parameters()), lr=0.5 if phase == "critic" else 1.0)]

    def phase_order(self, at):
        return ("critic", "critic", "generator") if at.index % 2 else ("critic",)

    def losses(self, phase, batch, at):
        fake = self.generator(at.draw.normal("z", 4))
        if phase == "generator":
            return Losses({"fool": (reduce(-self.critic(fake)), 1.0)})
        real = self.critic(batch.stream("video").data)
        return Losses({"real": (reduce(F.relu(1 - real)), 1.0), "fake": (reduce(F.relu(1 + self.critic(fake.detach()))), 1.0)})


def test_gan_phases_in_unequal_order():
    _, tensors, _ = check_resumes(Gan, vectors)
    steps = {p: tensors[f"optim/{p}/step/{p}.{'0.' if p == 'critic' else ''}weight"].item() for p in ("critic", "generator")}
    assert steps == {"critic": 12 + 6, "generator": 6}


class Teacher(Trainable):
    """A student follows its own moving average, whose decay rises with progress."""

    def __init__(self):
        super().__init__()
        self.student = nn.Linear(6, 4)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)

    def losses(self, phase, batch, at):
        x = batch.stream("video").data
        view = x + 0.1 * at.draw.child("second").normal("noise", 6)
        return Losses({"match": (reduce((self.student(view) - self.teacher(x) + x[:, :4]).square()), 1.0)})

    @torch.no_grad()
    def after_step(self, at):
        for t, s in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            t.lerp_(s, 1 - (0.9 + 0.09 * at.progress))


def test_ema_teacher():
    _, tensors, _ = check_resumes(Teacher, vectors, ema=0.9)
    torch.manual_seed(0)
    start = Teacher().teacher.weight
    assert not torch.equal(tensors["model/teacher.weight"], start)
    assert torch.dist(tensors["model/teacher.weight"], start) < torch.dist(tensors["model/student.weight"], start)
    assert not torch.equal(tensors["ema/student.weight"], tensors["model/student.weight"])


class Learned(Masker):
    """Samples visible tokens from learned scores; learns from the error of what it hid."""

    def __init__(self):
        super().__init__()
        self.score = nn.Linear(3, 1)

    def forward(self, grid, batch, stream, at, tokens=None):
        logp = self.score(tokens)[..., 0].log_softmax(1)
        noise = -torch.log(-torch.log(at.draw.uniform("gumbel", grid.n).clamp(1e-6, 1 - 1e-6)))
        order = (logp.detach() + noise).argsort(1, descending=True)
        return Mask(grid, order[:, :2], order[:, 2:], logp=logp)

    def loss(self, mask, error_BM):
        return -reduce(mask.logp.gather(1, mask.target) * error_BM)


class Adaptive(Trainable):
    def __init__(self):
        super().__init__()
        self.masker, self.model = Learned(), nn.Linear(3, 3)

    def losses(self, phase, batch, at):
        x = batch.stream("video").data.reshape(-1, 8, 3)
        mask = self.masker(TokenGrid(("step",), (8,), (1,)), batch, "video", at, x)
        seen = x.gather(1, mask.visible[..., None].expand(-1, -1, 3)).mean(1, keepdim=True)
        error = (self.model(seen) - x.gather(1, mask.target[..., None].expand(-1, -1, 3))).square().mean(-1)
        return Losses({"error": (reduce(error), 1.0), "masker": (self.masker.loss(mask, error.detach()), 1e-1)})


def test_learned_masker():
    _, tensors, _ = check_resumes(Adaptive, lambda draw, n: ({"video": Stream(draw.normal("x", 24))}, {}))
    assert not torch.equal(tensors["optim/main/exp_avg/masker.score.weight"], torch.zeros(1, 3))


class Ragged(Trainable):
    """Sequences of different lengths: padded masks, weights over real answers only."""

    def __init__(self):
        super().__init__()
        self.model = nn.Linear(3, 3)

    def losses(self, phase, batch, at):
        stream = batch.stream("video")
        order = at.draw.permutation("mask", 8)
        valid = stream.valid.gather(1, order)
        mask = Mask(TokenGrid(("step",), (8,), (1,)), order[:, :4], order[:, 4:], visible_valid=valid[:, :4], target_valid=valid[:, 4:])
        pick = lambda index: stream.data.gather(1, index[..., None].expand(-1, -1, 3))  # noqa: E731 (a toy in 30 lines)
        real = mask.visible_valid.float()[..., None]
        seen = (pick(mask.visible) * real).sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp(min=1)
        error = (self.model(seen) - pick(mask.target)).square().mean(-1)
        return Losses({"error": (reduce(error, mask.target_valid.float()), 1.0)})


def test_ragged_sequence_masks():
    def make(draw, n):
        length = 2 + draw.integers("length", 7)
        return {"video": Stream(draw.normal("x", 8, 3), valid=torch.arange(8) < length[:, None])}, {}

    check_resumes(Ragged, make)


class TwoStreams(Trainable):
    """Video and sound tokens joined, with padding, and split again."""

    needs = frozenset({"video", "audio"})

    def __init__(self):
        super().__init__()
        self.video, self.audio = nn.Linear(6, 8), nn.Linear(2, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)

    def losses(self, phase, batch, at):
        v, a = batch.stream("video").data[:, None], batch.stream("audio")
        index = torch.arange(5).expand(len(batch), -1)
        tokens, split = Tokens.join([Tokens(self.video(v), index[:, :1]), Tokens(self.audio(a.data), index, valid=a.valid)])
        video, audio = split(Tokens(self.block(tokens.x, src_key_padding_mask=~tokens.valid), tokens.index, valid=tokens.valid))
        return Losses({"agree": (reduce((video.x - audio.x).square().mean(-1), audio.valid.float()), 1.0)})


def test_two_streams_with_padding_and_dropout():
    def make(draw, n):
        length = 1 + draw.integers("length", 5)
        audio = Stream(draw.normal("a", 5, 2), valid=torch.arange(5) < length[:, None])
        return {"video": Stream(draw.normal("x", 6)), "audio": audio}, {}

    check_resumes(TwoStreams, make)


class Views(Trainable):
    """The second view is a part of the first, drawn per sample; its queries look at the first by cross-attention."""

    def __init__(self):
        super().__init__()
        self.embed, self.cross, self.head = nn.Linear(1, 8), nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 1)

    def losses(self, phase, batch, at):
        x = batch.stream("video").data[..., None]
        start = at.draw.integers("crop", 4)
        inside = start[:, None] + torch.arange(3)
        crop = x.gather(1, inside[..., None])
        first, second = self.embed(x), self.embed(crop.mean(1, keepdim=True)).expand(-1, 3, -1) + inside[..., None] / 6
        answer = self.head(self.cross(second, first, first)[0])
        return Losses({"error": (reduce((answer - crop).square()[..., 0]), 1.0)})


def test_two_dependent_views_with_cross_attention():
    check_resumes(Views, vectors)


class Distil(Trainable):
    """A frozen outside model as the target: neither trained nor saved."""

    def __init__(self):
        super().__init__()
        self.student, self.outside = nn.Linear(6, 4), Frozen(nn.Linear(6, 4), path="outside.pt", sha256="0")

    def losses(self, phase, batch, at):
        x = batch.stream("video").data
        return Losses({"distil": (reduce((self.student(x) - self.outside(x)).square().mean(-1)), 1.0)})


def test_frozen_outside_model():
    _, tensors, _ = check_resumes(Distil, vectors)
    assert not [k for k in tensors if "outside" in k]


def test_another_frozen_model_is_named_on_resume(tmp_path):
    class Other(Distil):
        def __init__(self):
            super().__init__()
            self.outside.sha256 = "1"

    train(Distil, ToyFeed(vectors), tmp_path, steps=2)
    with pytest.raises(CheckpointError, match=r"frozen\.outside\.sha256: the checkpoint has '0', this call '1'"):
        fit(
            Other(),
            ToyFeed(vectors),
            TrainSettings(steps=2, batch=8, lr=1e-2, min_lr=0.0, lr_batch=None, device="cpu"),
            tmp_path,
            resume=True,
        )


class PartlyFrozen(Trainable):
    """The first layer's weight was frozen by the method; nobody says so to the loop."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 3)
        self.first.weight.requires_grad_(False)

    def losses(self, phase, batch, at):
        assert not self.first.weight.requires_grad
        error = F.cross_entropy(self.second(self.first(batch.stream("video").data)), batch.labels["class"], reduction="none")
        return Losses({"ce": (reduce(error), 1.0)})


def test_what_a_method_froze_stays_frozen():
    _, tensors, _ = check_resumes(PartlyFrozen, vectors, weight_decay=0.5, lr=0.1, ema=0.9)
    torch.manual_seed(0)
    start = PartlyFrozen()
    assert torch.equal(tensors["model/first.weight"], start.first.weight)
    assert not torch.equal(tensors["model/first.bias"], start.first.bias)
    assert not [k for k in tensors if k.startswith("optim/") and k.endswith("first.weight")]


class Noisy(Trainable):
    """Notes the noise that it is given: in a phase that runs twice in a step, and after the step."""

    def __init__(self):
        super().__init__()
        self.model = nn.Linear(6, 1)
        self.seen, self.after = [], []

    def phase_order(self, at):
        return ("main", "main")

    def losses(self, phase, batch, at):
        self.seen.append((at.index, batch.sample.tolist(), at.draw.uniform("z"), at.draw.uniform("z", per="batch")))
        return Losses({"loss": (reduce(self.model(batch.stream("video").data).square()), 1.0)})

    def after_step(self, at):
        self.after.append((at.draw.uniform("z").item(), at.draw.uniform("z", per="batch").item()))


def test_repeated_phases_and_the_moment_after_a_step_draw_anew(tmp_path):
    model = Noisy()
    train(lambda: model, ToyFeed(vectors), tmp_path, steps=4, micro=4)
    assert [(index, sample[0]) for index, sample, _, _ in model.seen[:4]] == [(0, 0), (0, 4), (0, 0), (0, 4)]
    per_sample = torch.stack([z for _, _, z, _ in model.seen])
    assert len(per_sample.unique()) == per_sample.numel() == 4 * 2 * 8, "two passes of a step shared noise"
    assert len({z.item() for _, _, _, z in model.seen}) == 4 * 2, "batch noise: one value for each step and pass"
    assert len({z for z, _ in model.after}) == len({z for _, z in model.after}) == 4, "after_step drew the same at two steps"


class Plain(Trainable):
    def __init__(self):
        super().__init__()
        self.model = nn.Linear(6, 3)

    def tokens(self, progress):
        return 10 if progress < 0.5 else 5

    def losses(self, phase, batch, at):
        error = F.cross_entropy(self.model(batch.stream("video").data), batch.labels["class"], reduction="none")
        return Losses({"ce": (reduce(error), 1.0)})


def test_batch_size_schedules():
    _, _, seen = check_resumes(Plain, vectors, batch_schedule=((0.5, 16),), micro=4)
    assert seen == list(range(6 * 8 + 6 * 16))
    result, _, seen = check_resumes(Plain, vectors, steps=None, epochs=3.0, token_budget=50)
    assert seen == list(range(12 * 5 + 6 * 10))
    assert result.step == 18


class Head(Trainable):
    """The last stage: a classifier on features that an earlier stage's model makes."""

    def __init__(self, features):
        super().__init__()
        self.features, self.head = Frozen(features), nn.Linear(4, 3)

    def losses(self, phase, batch, at):
        error = F.cross_entropy(self.head(self.features(batch.stream("video").data)), batch.labels["class"], reduction="none")
        return Losses({"ce": (reduce(error), 1.0)})


def test_three_stages_each_resume():
    """pretrain -> distil from it -> classify on the distilled features, each a run of its own."""

    def chain(stops):
        with tempfile.TemporaryDirectory() as folder:
            _, first = train(Teacher, ToyFeed(vectors), Path(folder, "1"), stops)

            def distil():
                model = Distil()
                model.outside.inner.load_state_dict({k: first[f"model/teacher.{k}"] for k in ("weight", "bias")})
                return model

            _, second = train(distil, ToyFeed(vectors), Path(folder, "2"), stops)

            def head():
                features = nn.Linear(6, 4)
                features.load_state_dict({k: second[f"model/student.{k}"] for k in ("weight", "bias")})
                return Head(features)

            return train(head, ToyFeed(vectors), Path(folder, "3"), stops)[1]

    straight, pieces = chain(()), chain((5,))
    assert all(torch.equal(straight[k], pieces[k]) for k in straight)


def test_step_knows_only_the_clock():
    """Batch and Step are all that losses() receives: nothing of files, ranks or order."""
    assert set(Step.__dataclass_fields__) == {"index", "samples", "epoch", "progress", "draw"}
    assert set(Batch.__dataclass_fields__) == {"streams", "labels", "sample", "key", "text"}
