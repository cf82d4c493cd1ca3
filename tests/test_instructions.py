"""The comparison of instruction counts with the recorded ones; the counting itself is `make instructions`."""

import importlib.util
import json
from pathlib import Path

spec = importlib.util.spec_from_file_location(
    "instructions", Path(__file__).parent.parent / "benchmarks" / "instructions.py"
)
instructions = importlib.util.module_from_spec(spec)
spec.loader.exec_module(instructions)

RECORDED = {"a": {"per_sample_and_stage": 100.0, "per_call": 5000.0}, "b": {"per_sample_and_stage": 7.0}}


def test_equal_counts_and_those_within_the_tolerance_pass():
    assert instructions.differences(RECORDED, RECORDED, 0.0) == []
    near = {**RECORDED, "a": {"per_sample_and_stage": 100.9, "per_call": 4960.0}}
    assert instructions.differences(RECORDED, near, 0.01) == []


def test_changes_in_either_direction_are_told():
    changed = {**RECORDED, "a": {"per_sample_and_stage": 103.0, "per_call": 4000.0}}
    assert instructions.differences(RECORDED, changed, 0.01) == [
        "a: per_sample_and_stage was 100 and is 103 (+3.0%)",
        "a: per_call was 5000 and is 4000 (-20.0%)",
    ]


def test_cases_of_one_side_only_are_told():
    assert instructions.differences(RECORDED, {"a": RECORDED["a"]}, 0.01) == ["b: recorded, but not measured"]
    assert instructions.differences({"a": RECORDED["a"]}, RECORDED, 0.01) == ["b: not recorded"]


def test_the_record_is_of_what_is_counted():
    record = json.loads(instructions.RECORD.read_text())
    assert record["compiler"]
    assert set(record["instructions"]) == {what.name() for what in instructions.COUNTED}
