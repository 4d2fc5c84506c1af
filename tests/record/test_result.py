"""What a notebook shows of a run."""

from __future__ import annotations

from fedsim.record.result import Result

PNG = b"\x89PNG"


def test_the_numbers_that_there_are(tmp_path):
    shown = Result(tmp_path, {"accuracy": 0.912345678, "loss": None, "rounds": 0, "notes": []})._repr_html_()
    assert (
        shown
        == "<table><tr><th>accuracy</th><td>0.912346</td></tr><tr><th>rounds</th><td>0</td></tr></table>"
    )


def test_the_curves_stand_above_and_the_report_below(tmp_path):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "curves.png").write_bytes(PNG)
    (tmp_path / "report.html").write_text("")
    shown = Result(tmp_path, {"rounds": 1})._repr_html_()
    assert shown.startswith(
        '<img alt="learning curves" style="max-width: 100%" src="data:image/png;base64,iVBORw=="'
    )
    assert shown.endswith(f"<p>report: {tmp_path / 'report.html'}</p>")


def test_what_users_write_is_escaped(tmp_path):
    shown = Result(tmp_path, {"name": "<script>alert(1)</script>", "notes": ["a < b"]})._repr_html_()
    assert "<script>" not in shown
    assert "&lt;script&gt;alert(1)" in shown
    assert "a &lt; b" in shown
