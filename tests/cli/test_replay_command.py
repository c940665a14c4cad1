"""`tubelet replay` as a face of its public function."""

from __future__ import annotations

from tubelet.errors import CheckpointError


def test_options_reach_the_function(cli, public):
    replay = public("replay", gives="what became of the step")
    got = cli("replay", "runs/a", "731")
    assert (got.code, got.out, got.err) == (0, "what became of the step\n", "")
    cli("replay", "runs/a", "0", "--no-train", "--sources", "x", "--sources", "y", "--out", "look", "--pictures", "2", "--device", "cpu")
    defaults, others = ({k: v for k, v in more.items() if k != "say"} for _, more in replay.calls)
    assert [args for args, _ in replay.calls] == [("runs/a", 731), ("runs/a", 0)]
    assert defaults == {"train": True, "sources": None, "out": None, "pictures": 8, "device": "auto", "imports": []}
    assert others == {"train": False, "sources": ["x", "y"], "out": "look", "pictures": 2, "device": "cpu", "imports": []}


def test_mistakes_are_reported_together(cli, public):
    public("replay")
    got = cli("replay", "runs/a", "-1", "--no-trian")
    assert got.code == 2
    assert "--no-trian: unknown option (did you mean '--no-train'?)" in got.err
    assert "Traceback" not in got.err
    assert "STEP: must be given" in cli("replay", "runs/a").err


def test_an_error_has_one_message(cli, public):
    public("replay", gives=CheckpointError("runs/a: no such run folder"))
    got = cli("replay", "runs/a", "1")
    assert (got.code, got.err) == (1, "error: runs/a: no such run folder\n")
