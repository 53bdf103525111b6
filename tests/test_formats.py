import pytest

from cdbench.inference import Interval
from cdbench.report.build import to_csv
from cdbench.report.escaping import markdown_cell
from cdbench.report.formats import Measured, number, over_seeds, p_value, percent, points


def test_numbers_as_people_read_them() -> None:
    assert (percent(0.963), percent(None)) == ("96.3 %", "–")
    assert [points(v) for v in (0.012, -0.447, 0.0002, -0.0002, None)] == ["+1.2", "−44.7", "0.0", "0.0", "–"]
    assert (number(-0.0512), number(None)) == ("−0.051", "–")
    assert (p_value(0.0004), p_value(0.0412)) == ("< 0.001", "0.041")


def test_hostile_text_stays_in_its_cell() -> None:
    assert markdown_cell("a|b\n<script>") == "a\\|b &lt;script&gt;"
    lines = to_csv([{"name": "=HYPERLINK(1)", "value": -1.5}, {"name": "+x,\ny", "value": 2}]).splitlines()
    assert lines[1] == "'=HYPERLINK(1),-1.5"
    assert lines[2].startswith("\"'+x,")


@pytest.mark.parametrize("rows", [[], [{"a": None}]])
def test_an_empty_table_is_no_crash(rows: list[dict[str, object]]) -> None:
    assert isinstance(to_csv(rows), str)


def test_a_mean_has_its_interval_where_seeds_differ() -> None:
    assert over_seeds(None, number) == "–"
    assert over_seeds(Measured(0.5, None), percent) == "50.0 %"
    assert over_seeds(Measured(0.5, Interval(-0.02, 1.02)), number) == "0.500 [−0.020, 1.020]"
