from xml.etree import ElementTree

import pytest
from matplotlib.figure import Figure

from bench import common
from bench.charts import OTHERS, OURS, Bar, Curve, bars, curves, draw_bars, draw_curves
from memworker.errors import UsageError


@pytest.fixture
def axes():
    return Figure().add_subplot()


def test_bars_are_as_long_as_their_values(axes):
    draw_bars(axes, "t", [Bar("a", 10), Bar("b", 5, ours=True)], ",.0f")
    (drawn,) = axes.containers
    assert [bar.get_width() for bar in drawn] == [10, 5]
    assert drawn[0].get_facecolor() != drawn[1].get_facecolor()
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]


def test_curves_go_through_their_points_and_marks_lie_on_them(axes):
    points = [(1, 100), (2, 200), (4, 400)]
    draw_curves(axes, "t", [Curve("c", points, marks=[(2, 200)])], "cores", "rate")
    line, marks = axes.get_lines()
    assert list(zip(*line.get_data(), strict=True)) == points
    assert list(zip(*marks.get_data(), strict=True)) == [(2, 200)]


def test_a_chart_is_one_svg_element_whose_text_is_text_and_the_same_each_time():
    drawn = bars("A & B $x$", [Bar("b <", 1234, ours=True, note="× 2"), Bar("c", 1)])
    assert drawn == bars("A & B $x$", [Bar("b <", 1234, ours=True, note="× 2"), Bar("c", 1)])
    texts = {"".join(t.itertext()).strip() for t in ElementTree.fromstring(drawn).iter() if t.text}
    assert {"A & B $x$", "b <", "1,234  × 2"} <= texts
    assert OURS in drawn and OTHERS in drawn


def test_curves_that_were_not_measured_are_said_to_be_so():
    assert "not measured" in curves("none", [], x_name="x", y_name="y")


def test_one_point_and_no_bars_can_be_drawn():
    ElementTree.fromstring(bars("none", []))
    ElementTree.fromstring(curves("one", [Curve("c", [(1, 5)])], x_name="x", y_name="y"))


def test_a_missing_library_is_named_with_the_pip_command():
    with pytest.raises(UsageError, match=r"needs nosuch.*pip install 'memworker\[bench\]'"):
        common.optional("nosuch.part")
