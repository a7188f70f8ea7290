from xml.etree import ElementTree

from bench.charts import Bar, Curve, _apart, bars, curves

SVG = "{http://www.w3.org/2000/svg}"


def test_bars_are_as_long_as_their_values():
    drawing = ElementTree.fromstring(bars("A & B", [Bar("a", 10), Bar("b <", 5, ours=True)]))
    _, first, second = drawing.findall(f"{SVG}rect")
    assert float(first.get("width")) == 2 * float(second.get("width"))
    assert first.get("fill") != second.get("fill")
    assert {"A & B", "b <", "10"} <= {text.text for text in drawing.findall(f"{SVG}text")}


def test_curves_rise_and_marks_lie_on_them():
    line = Curve("c", [(1, 100), (2, 200), (4, 400)], marks=[(2, 200)])
    drawing = ElementTree.fromstring(curves("C", [line], x_name="cores", y_name="rate"))
    points = [p.split(",") for p in drawing.find(f"{SVG}polyline").get("points").split()]
    heights = [float(y) for _, y in points]
    assert heights == sorted(heights, reverse=True)
    mark = drawing.find(f"{SVG}circle")
    assert [mark.get("cx"), mark.get("cy")] == points[1]


def test_labels_do_not_lie_upon_each_other():
    assert _apart([50.0, 48.0, 100.0], gap=16) == [64.0, 48.0, 100.0]


def test_curves_that_were_not_measured_are_said_to_be_so():
    assert "not measured" in curves("none", [], x_name="x", y_name="y")


def test_one_point_and_no_bars_can_be_drawn():
    ElementTree.fromstring(bars("none", []))
    ElementTree.fromstring(curves("one", [Curve("c", [(1, 5)])], x_name="x", y_name="y"))
