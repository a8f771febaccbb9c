"""The sentences and numbers people read."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpudrift.report import style, wording
from gpudrift.report.wording import GateLine, VerdictSummary, plain_sentence, quantities, quantity


@pytest.mark.parametrize(
    ("changes", "said", "unsaid"),
    [
        ({}, ["2026-W43 lies far from the reference (2020", "28 times", "p=0.00025", "not the first"], ["no drift"]),
        (
            {"verdict": "stable", "p_aa": 0.3, "ratio": 1.84},
            ["shows no drift", "1.8 times", "p=0.3"],
            ["far", "alarm"],
        ),
        ({"verdict": "warning", "p_close": 0.01}, ["lies further", "A second such window in a row"], ["no alert"]),
        ({"verdict": "warning", "p_close": 0.4}, ["lies further", "so it is no alert"], ["A second such"]),
        ({"verdict": "warning", "p_aa": 0.2}, ["near the usual movement again", "not cleared yet"], ["lies further"]),
        ({"verdict": "alert", "p_aa": 0.02}, ["near the usual movement again", "not cleared yet"], ["lies far"]),
        (
            {"verdict": "insufficient", "p_aa": None, "ratio": None, "reason": "62 rows, at least 100 are needed."},
            ["No verdict for 2026-W43: 62 rows, at least 100 are needed."],
            ["times", ".."],
        ),
        ({"verdict": "insufficient", "reason": ""}, ["too little data"], ["times"]),
        ({"reason": "the encoder was changed"}, ["(p=0.00025). The encoder was changed."], []),
        ({"p_aa": 1e-12}, ["(p<0.0001)"], ["1e-12"]),
        ({"ratio": -0.4, "verdict": "stable", "p_aa": 0.999}, ["0.0 times", "(p>0.99)"], ["-0.4"]),
    ],
)
def test_the_sentence_says_what_was_found(
    alert: VerdictSummary, changes: dict[str, object], said: list[str], unsaid: list[str]
) -> None:
    sentence = plain_sentence(dataclasses.replace(alert, **changes))  # type: ignore[arg-type]
    for words in said:
        assert words in sentence
    for words in unsaid:
        assert words not in sentence
    assert sentence.endswith(".")


FAR = GateLine("energy", 0.0171, 0.0004, True, True)
NEAR = GateLine("energy", 0.0004, 0.7, False)
SPREAD = GateLine("log_variance_ratio", -0.1, 0.002, True)
FINE = tuple(GateLine(f"mmd2_b{k}", 0.003, p, True) for k, p in ((1, 0.0001), (2, 0.004)))


@pytest.mark.parametrize(
    ("verdict", "gates", "said", "unsaid"),
    [
        ("alert", (FAR, SPREAD), ["lies far from", "28 times", "(p=0.0004)", "not the first"], ["spread", "0.002"]),
        (
            "alert",
            (NEAR, SPREAD),
            [
                "differs from",
                "not the first",
                "the spread (p=0.002) is beyond",
                "distance is not (28 times the usual movement)",
            ],
            ["lies far", "0.7"],
        ),
        (
            "warning",
            (NEAR, *FINE, SPREAD),
            ["differs from the reference (", ": the local structure (p=0.0001) and the spread (p=0.002) are beyond"],
            ["lies", "usually do", "0.004", "A second such"],
        ),
        ("warning", (FAR, SPREAD), ["lies further", "A second such window"], []),
        ("warning", (dataclasses.replace(FAR, sure=False),), ["lies further", "so it is no alert"], ["A second"]),
        ("warning", (NEAR, dataclasses.replace(SPREAD, sure=True)), ["differs from", "A second such window"], []),
        ("warning", (NEAR,), ["near the usual movement again", "not cleared yet", "(p=0.7)"], ["differs", "lies"]),
        (
            "stable",
            (NEAR, dataclasses.replace(SPREAD, beyond=False, p=0.2)),
            ["no drift", "(smallest p of 2 metrics: 0.2)"],
            ["0.7", "but"],
        ),
        ("warning", (NEAR, GateLine("my_metric", 1.0, 1e-9, True)), [": my_metric (p<0.0001) is beyond"], []),
        ("insufficient", (FAR,), ["No verdict for 2026-W43"], ["lies", "p="]),
    ],
)
def test_the_sentence_says_which_metrics_made_the_verdict(
    alert: VerdictSummary, verdict: str, gates: tuple[GateLine, ...], said: list[str], unsaid: list[str]
) -> None:
    sentence = plain_sentence(dataclasses.replace(alert, verdict=verdict, gates=gates))  # type: ignore[arg-type]
    for words in said:
        assert words in sentence
    for words in unsaid:
        assert words not in sentence
    assert sentence.endswith(".")


def test_the_reference_is_named_on_demand(alert: VerdictSummary) -> None:
    assert "2020-07-01" in plain_sentence(alert)
    assert "2020-07-01" not in plain_sentence(alert, name_reference=False)


def test_numbers() -> None:
    assert [wording.number(v) for v in (0.0171234, 1234.5, None, float("nan"), -2e-9)] == [
        "0.0171",
        "1.23e+03",
        "-",
        "-",
        "-2e-09",
    ]
    assert [wording.p_value(v) for v in (0.0341, 9e-5, 0.995, None)] == ["0.034", "<0.0001", ">0.99", "-"]
    assert [wording.times(v) for v in (1.84, 9.96, 21.4, 4321.0, -3.0, None)] == [
        "1.8x",
        "10x",
        "21x",
        "4,321x",
        "0.0x",
        "-",
    ]
    assert wording.count(1234567) == "1,234,567"


def test_values_of_the_users_units() -> None:
    assert [quantity(value) for value in (5512.3, -8712.0, 99.7, 54.4, 0.0063, 0.0, 1e-9, 1e16, math.nan)] == [
        *("5,500", "-8,700", "100", "54", "0.0063", "0", "1e-09", "1e+16", "-")
    ]
    assert quantities(54, 44.2, 31) == ("54", "44.2", "31")
    assert quantities(0.0399, 0.0425, 0.0966) == ("0.0399", "0.0425", "0.0966")
    assert quantities(0.336, -0.2067, 0.487) == ("0.336", "-0.207", "0.487")
    assert quantities(5.0, 5.0, 5.0) == ("5", "5", "5")
    assert quantities(0.0, 0.0) == ("0", "0")
    assert quantities(1.11e-6, 1.26e-6, math.nan) == ("1.11e-06", "1.26e-06", "-")
    assert quantities(1.0, 1.0 + 1e-16) == ("1", "1")


@given(st.lists(st.floats(-1e14, 1e14), min_size=1, max_size=3))
def test_values_are_told_in_their_order_and_apart_where_floats_of_ten_digits_are(values: list[float]) -> None:
    told = [float(text.replace(",", "")) for text in quantities(*values)]
    for a, x in zip(told, values, strict=True):
        for b, y in zip(told, values, strict=True):
            assert a <= b or x > y
            assert a != b or abs(x - y) <= 1e-10 * max(map(abs, values))


def test_spans_name_their_last_day() -> None:
    day = datetime(2026, 10, 19, tzinfo=UTC)
    assert wording.span_text(day, datetime(2026, 10, 26, tzinfo=UTC)) == "2026-10-19 to 2026-10-25"
    assert wording.span_text(day, datetime(2026, 10, 20, tzinfo=UTC)) == "2026-10-19"


@given(st.text())
def test_printable_text_is_one_line_without_control_characters(text: str) -> None:
    shown = wording.printable(text)
    assert shown.isprintable()
    assert shown == shown.strip()
    assert wording.printable(shown) == shown


@given(st.text(), st.floats(0.2, 8), st.sampled_from([8.5, 13.0]), st.sampled_from(["normal", "bold"]))
def test_wrapped_lines_fit_and_lose_nothing(text: str, width: float, size: float, weight: str) -> None:
    lines = style.wrap(text, width, size, weight)
    assert "".join(lines).replace(" ", "") == style.label(text).replace(" ", "")
    for line in lines:
        assert style.text_width(line, size, weight) <= width or len(line) == 1
    assert len(style.wrap(text, width, size, weight, lines=2)) <= 2


def test_shortened_text_says_so() -> None:
    assert style.shorten("word", 3, 9) == "word"
    short = style.shorten("many words that do not fit in here at all", 1.0, 9)
    assert short.endswith("…")
    assert style.text_width(short, 9) <= 1.0


def test_letters_the_font_lacks_are_replaced() -> None:
    assert style.label("naïve Δ 漢 \x07 end") == "naïve Δ ? ? end"


def test_words_load_neither_rich_nor_matplotlib_nor_torch() -> None:
    code = "import sys, json, gpudrift.report.wording; print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout)
    assert not {"rich", "matplotlib", "torch", "numpy"} & set(loaded)
