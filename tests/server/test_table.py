"""The table that closes a run."""

import io

import pytest
from rich.console import Console

from server.record import RoundRecord
from server.table import closing_table


@pytest.mark.parametrize("width", [80, 50, 30])
def test_numbers_stay_whole_on_a_narrow_terminal(width: int) -> None:
    metrics = {"loss": 2.6925, "accuracy": 0.1542}
    comm = {"broadcasted_bits": 8e7, "aggregated_bits": 8e5, "empty": 0, "failures": 12}
    record = RoundRecord(1, metrics, metrics, comm, {}, 3.14)
    out = io.StringIO()
    Console(file=out, width=width).print(closing_table([record], width), soft_wrap=True)
    *titles, numbers = out.getvalue().splitlines()
    assert numbers.split() == ["1", *["2.6925", "0.1542"] * 2, "10.00", "0.10", "0", "12", "3.1"]
    assert len(numbers) <= max(width, 49)
    assert len(titles) == 2 or width < 80
    assert sorted("".join(titles).replace(" ", "")) == sorted(
        "roundtrainlosstrainaccuracyheld-outlossheld-outaccuracyMBdownMBupemptyfailedseconds"
    )


def test_a_run_without_a_round_has_titles() -> None:
    out = io.StringIO()
    Console(file=out, width=80).print(closing_table([], 80), soft_wrap=True)
    assert out.getvalue() == "round MB down MB up empty failed seconds\n"
