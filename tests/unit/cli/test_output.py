"""Tables on terminals of any width."""

from __future__ import annotations

from meshnode.cli.output import _fit


def test_a_narrow_terminal_drops_columns_in_their_order_until_the_table_fits() -> None:
    columns = ("NAME", "ZONE", "ID")
    rows = [("alpha", "a", "x" * 32)]
    assert _fit(columns, rows, 80, ("ZONE", "ID")) == (list(columns), [list(rows[0])])
    assert _fit(columns, rows, 42, ("ZONE", "ID"))[0] == ["NAME", "ID"]
    assert _fit(columns, rows, 20, ("ZONE", "ID")) == (["NAME"], [["alpha"]])
    assert _fit(columns, rows, 3, ("ZONE",))[0] == ["NAME", "ID"]
