"""The report on a terminal."""

import io

from rich.console import Console

from share_dist.commands.report_text import checks_of, export_line, tables_of
from tests.commands.results import report_of


def test_every_table_fits_into_80_columns_whole():
    """No cell is cut: every task, version and total is there in full, with and without LoRAs."""
    for report in (report_of(), report_of(with_lora=True)):
        text = io.StringIO()
        console = Console(file=text, width=80)
        for table in tables_of(report):
            console.print(table)
        shown = text.getvalue()
        assert "…" not in shown
        for heading in ("final", "lag", "drift", "energy", "angle"):
            assert heading in shown
        assert ("own" in shown) == (report["tasks"][0]["lora"] is not None)
        for row in report["tasks"]:
            assert row["task"] in shown
            assert f"{row['final']:.3f}" in shown
        for account in report["bytes"]["accounts"]:
            assert f"{account['total']:,}" in shown


def test_every_check_is_one_line_with_its_limit():
    """What was found, what was wanted and whether it was reached are said for each figure."""
    report = report_of()
    lines = checks_of(report)
    assert len(lines) == len(report["checks"])
    for line, check in zip(lines, report["checks"], strict=True):
        assert check["what"] in line
        assert f"{check['bound']} {check['limit']}" in line
        assert ("not reached" in line) == (not check["reached"])
    assert "logits" in export_line(report)
