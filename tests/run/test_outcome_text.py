"""What a run says at its end: the reason, the number, the limit and the way out."""

from __future__ import annotations

from pipeline.run.local import Outcome


def outcome(**values):
    return Outcome(
        **({"output": "out", "tiles": 4, "computed": 4, "skipped": 0, "degraded": 0, "valid_px": 9} | values)
    )


def test_scenes_that_could_not_be_read_are_not_called_out_of_reach():
    text = outcome(degraded=4, valid_px=0, max_degraded_pct=20.0).text()
    assert "no pixel of these tiles has a valid observation" in text
    assert "do not reach" not in text


def test_scenes_out_of_reach_are_called_so():
    assert "the scenes do not reach the area" in outcome(valid_px=0).text()


def test_too_many_degraded_tiles_are_told_with_share_limit_and_setting():
    ended = outcome(degraded=2, too_degraded=True, max_degraded_pct=20.0)
    assert ended.exit_code == 65
    assert "2 of 4 tiles" in ended.text()
    assert "50%" in ended.text()
    assert "run.max_degraded_pct=20" in ended.text()


def test_few_degraded_tiles_name_no_limit():
    ended = outcome(degraded=1, max_degraded_pct=50.0)
    assert ended.exit_code == 0
    assert "max_degraded_pct" not in ended.text()
