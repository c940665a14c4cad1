"""MGM: there is no official code; the file holds motion vectors as FFmpeg exports them and the rules of the page, worked out apart."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from _golden import Comparison, Golden, GoldenError
from _guided import Said, batch_of

from tubelet.core import Field, TokenGrid
from tubelet.data.decode import PyavReader
from tubelet.guides.vectors import filled
from tubelet.masking._boxes import box_size
from tubelet.masking._fields import interest
from tubelet.masking.mgm import MotionGuided

COLUMNS = ("source", "w", "h", "src_x", "src_y", "dst_x", "dst_y", "motion_x", "motion_y", "motion_scale")


def compare(golden: Golden) -> Iterator[Comparison]:
    """What the decoder exports, the painted field, its length on the tokens, and the box."""
    from tubelet.data.vectors import painted

    frames, height, width = (golden.option(name) for name in ("frames", "height", "width"))
    grid = TokenGrid.of((frames, height, width), (golden.option("tubelet"), golden.option("patch"), golden.option("patch")))
    kinds, rows, fields = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "golden.mp4")
        path.write_bytes(golden.need("input/mp4_bytes").numpy().tobytes())
        with PyavReader(str(path), vectors=True) as reader:
            timeline = next(reader.timelines())
            for i, frame in reader.decoded(timeline, range(len(timeline))):
                side = frame.side_data.get("MOTION_VECTORS")
                kinds.append(int(frame.pict_type))
                table = side.to_ndarray() if side is not None else None
                fields.append(torch.zeros(height // 4, width // 4, 2) if table is None else torch.from_numpy(painted(table, height, width)))
                if table is not None:
                    rows += [[i, *(int(row[name]) for name in COLUMNS)] for row in table]
    yield "output/frame_types_I1_P2_B3", torch.tensor(kinds), golden.need("output/frame_types_I1_P2_B3"), "output"
    yield "output/mv_table", torch.tensor(rows), golden.need("output/mv_table"), "output"
    field = torch.stack(fields)
    yield "derived/motion_field_4px", field, golden.need("derived/motion_field_4px"), "output"
    if golden.option("gop") != frames or golden.option("bframes"):
        raise GoldenError("this comparison knows streams of one group of pictures without B-frames")
    known = torch.tensor([kind != 1 for kind in kinds])[None]
    flow = Field(filled(field.permute(3, 0, 1, 2)[None].contiguous(), known), "flow")
    yield "derived/token_motion_magnitude", interest(flow, grid)[0], golden.need("derived/token_motion_magnitude"), "output"
    ratio = golden.option("gamma")
    if list(box_size(ratio, *grid.shape[1:])) != golden.option("box"):
        raise GoldenError(f"our box is {box_size(ratio, *grid.shape[1:])}, the file's {golden.option('box')}")
    batch, at = batch_of(torch.zeros(1, 3, *grid.size))
    mask = MotionGuided(guide=Said(flow), ratio=ratio)(grid, batch, "video", at)
    yield "derived/box_mask", mask.hidden()[0].float(), golden.need("derived/box_mask"), "output"
