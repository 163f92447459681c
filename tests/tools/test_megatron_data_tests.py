"""Megatron-LM's own unit tests for data pass on our files. MEGATRON_REPO names a copy of Megatron-LM."""

import os
from pathlib import Path

import pytest

from tools import megatron_data_tests


def test_a_folder_that_is_no_copy_of_megatron_is_named(tmp_path):
    assert "has no folder tests/unit_tests/data" in megatron_data_tests.missing_for(tmp_path)


def test_a_report_becomes_outcomes_with_reasons(tmp_path):
    cases = (
        '<testcase classname="tests.data.test_a" name="one"/>'
        '<testcase classname="tests.data.test_a" name="two"><skipped message="no S3"/></testcase>'
        '<testcase classname="tests.data.test_b" name="three"><failure message="1 != 2&#10;x"/></testcase>'
    )
    (tmp_path / "r.xml").write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
    assert [tuple(outcome) for outcome in megatron_data_tests.outcomes_of(tmp_path / "r.xml")] == [
        ("test_a.py::one", "passed", ""),
        ("test_a.py::two", "skipped", "no S3"),
        ("test_b.py::three", "failed", "1 != 2"),
    ]


@pytest.mark.deep
def test_megatrons_own_tests_pass_on_our_files():
    """On Megatron-LM of August 2026 (0.20 dev)."""
    repo = os.environ.get("MEGATRON_REPO")
    if repo is None:
        pytest.skip("MEGATRON_REPO does not name a copy of Megatron-LM")
    missing = megatron_data_tests.missing_for(Path(repo))
    if missing:
        pytest.skip(missing)
    outcomes = megatron_data_tests.run(Path(repo), [])
    assert [outcome for outcome in outcomes if outcome.state == "failed"] == []
    assert sum(outcome.state == "passed" for outcome in outcomes) > 100
