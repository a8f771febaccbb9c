"""The terminal output: rich on a terminal, plain elsewhere, and never misled by what it prints."""

from __future__ import annotations

import dataclasses
import io
import re
import threading
from collections.abc import Callable

import pytest
from rich.console import Console

from gpudrift.records import GateMetric, HistoryPoint
from gpudrift.report.terminal import WIDTH, Reporter, done_text, size_text
from gpudrift.report.wording import GateLine, VerdictSummary

ESCAPE = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")
MARKUP = "out/[bold]x[/bold]/[red]/a[0].json :smile: [/]"


class Said:
    """A reporter and what it wrote: ``out`` and ``err``."""

    def __init__(self, terminal: bool = False, quiet: bool = False, width: int = 80, encoding: str = "utf-8") -> None:
        self._streams = [io.TextIOWrapper(io.BytesIO(), encoding, newline="") for _ in range(2)]
        self.now = 0.0
        consoles = [
            Console(
                file=stream,
                force_terminal=terminal,
                width=width,
                highlight=False,
                color_system="standard" if terminal else None,
                _environ={"TERM": "xterm"},
            )
            for stream in self._streams
        ]
        self.reporter = Reporter(consoles[0], quiet, diagnostics=consoles[1], clock=lambda: self.now)

    def _text(self, stream: io.TextIOWrapper) -> str:
        stream.flush()
        return stream.buffer.getvalue().decode(stream.encoding)  # type: ignore[attr-defined]

    @property
    def out(self) -> str:
        return self._text(self._streams[0])

    @property
    def err(self) -> str:
        return self._text(self._streams[1])


def say_everything(said: Said, alert: VerdictSummary, points: list[HistoryPoint]) -> None:
    said.reporter.stage("Reading the source")
    with said.reporter.progress("reading", 1000, "rows") as advance:
        for _ in range(10):
            advance(100)
    said.reporter.note("46 of 53 windows kept")
    said.reporter.warn("no CUDA device: computed on the CPU")
    said.reporter.verdict_table(alert)
    said.reporter.history_table(points, last=5)


def test_a_log_gets_plain_single_lines(alert: VerdictSummary, long_history: list[HistoryPoint]) -> None:
    said = Said()
    say_everything(said, alert, long_history)
    for text in (said.out, said.err):
        assert not ESCAPE.search(text)
        assert text.isascii()
        assert text.endswith("\n")
        assert "\n\n" not in text
    assert said.err.splitlines() == [
        "> Reading the source",
        "  reading: 1,000 rows in 0.0 s",
        "  46 of 53 windows kept",
        "warning: no CUDA device: computed on the CPU",
    ]
    table = said.out.splitlines()
    assert table[0].startswith("ALERT  2026-W43 lies far from the reference")
    assert "2020-07-01" not in table[0]  # it stands in a line of its own
    assert all(len(line) <= WIDTH for line in table[1:])
    assert "  score           0.0171 +- 0.002 (95% interval 0.0131 to 0.0211)" in table
    assert "  exit code       20" in table
    assert "  wrote           out/weekly/result.json" in table
    assert re.search(r"^  residual_energy +-0\.002 +-$", said.out, re.M)


def test_results_and_diagnostics_go_to_their_own_streams(alert: VerdictSummary) -> None:
    said = Said()
    said.reporter.verdict_table(alert)
    assert said.err == ""
    said = Said()
    said.reporter.stage("a")
    said.reporter.note("b")
    said.reporter.warn("c")
    assert said.out == ""


def test_a_terminal_gets_bars_with_rate_and_colour(alert: VerdictSummary) -> None:
    said = Said(terminal=True, width=120)
    with said.reporter.progress("reading", 1000, "rows") as advance:
        advance(250)
        assert said.err  # drawn while the block runs
    assert "\x1b[" in said.err
    assert "━" in said.err
    assert "of 1,000 rows" in said.err
    assert "left" in said.err
    assert re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said.err).rstrip().endswith("reading: 250 rows in 0.0 s")
    said.reporter.verdict_table(alert)
    assert "\x1b[1;31mALERT" in said.out


@pytest.mark.parametrize("width", [80, 110])
def test_the_time_left_is_not_cut_on_a_narrow_terminal(width: int) -> None:
    said = Said(terminal=True, width=width)
    with said.reporter.progress("usual movement", 112_500_000, "pairs") as advance:
        said.reporter.detail("usual: block 629 of 1770")
        advance(38_334_720)
    assert "-:--:-- left; usual" in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said.err)


@pytest.mark.parametrize("terminal", [False, True])
def test_markup_in_text_is_printed_as_it_is(terminal: bool, alert: VerdictSummary) -> None:
    said = Said(terminal=terminal, width=300)
    said.reporter.stage(MARKUP)
    said.reporter.warn(MARKUP)
    with said.reporter.progress(MARKUP, None) as advance:
        advance(1)
    assert said.err.count(MARKUP) >= (4 if terminal else 3)  # on a terminal beside the bar too
    named = dataclasses.replace(
        alert, outputs=(MARKUP,), window=MARKUP, metrics=((MARKUP, 1.0, None),), notes=(MARKUP,)
    )
    said.reporter.verdict_table(named)
    assert said.out.count(MARKUP) == 5


@pytest.mark.parametrize("terminal", [False, True])
def test_control_characters_in_text_never_arrive(terminal: bool) -> None:
    said = Said(terminal=terminal)
    said.reporter.warn("a\x1b[2J\x1b]0;title\x07b\rc\nd\x9b31m\u202e")
    assert "\x1b[2J" not in said.err
    assert "\x1b]0" not in said.err
    assert not set("\x07\r\x9b\u202e") & set(said.err)
    assert said.err.count("\n") == 1


def test_long_paths_stay_in_one_piece(alert: VerdictSummary) -> None:
    path = "/".join(["directory"] * 40)
    for terminal in (False, True):
        said = Said(terminal=terminal, width=60)
        said.reporter.verdict_table(dataclasses.replace(alert, outputs=(path,)))
        assert path in said.out


def test_a_log_that_cannot_hold_a_letter_gets_it_escaped() -> None:
    said = Said(encoding="ascii")
    said.reporter.note("naïve 漢")
    assert said.err == "  na\\xefve \\u6f22\n"
    said = Said(encoding="utf-8")
    said.reporter.note("naïve 漢")
    assert said.err == "  naïve 漢\n"


def test_a_dumb_terminal_is_a_log() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, _environ={"TERM": "dumb"})
    reporter = Reporter(console, diagnostics=console, clock=lambda: 0.0)
    with reporter.progress("reading", 10) as advance:
        advance(10)
    assert stream.getvalue() == "  reading: 10 rows in 0.0 s\n"


def test_quiet_leaves_warnings_and_the_sentence(alert: VerdictSummary, long_history: list[HistoryPoint]) -> None:
    for terminal in (False, True):
        said = Said(quiet=True, terminal=terminal)
        say_everything(said, alert, long_history)
        assert said.err.count("\n") == 1
        assert "no CUDA device" in said.err
        assert said.out.count("\n") == 2  # the sentence, and the tally of the history
        assert "(2020-07-01 to 2021-06-30, 46 of 53 windows)" in said.out


def test_a_long_stage_in_a_log_says_it_is_alive() -> None:
    said = Said()
    with said.reporter.progress("reading", 1000, "rows") as advance:
        for second in range(0, 150, 10):
            said.now = float(second)
            advance(10)
            if second == 60:
                said.reporter.detail("read 3 of 12")
    assert said.err.splitlines() == [
        "  reading: 70 of 1,000 rows after 60 s, 1 rows/s, about 797 s left",
        "  reading: 130 of 1,000 rows after 120 s, 1 rows/s, about 803 s left; read 3 of 12",
        "  reading: 150 rows in 140.0 s",
    ]


def test_a_stage_does_not_repeat_where_the_one_before_it_stood() -> None:
    said = Said()
    with said.reporter.progress("pairs", 10, "pairs"):
        said.reporter.detail("XY: block 3 of 12")
    with said.reporter.progress("reading", None, "rows") as advance:
        said.now = 61.0
        advance(5)
    assert said.err.splitlines()[1] == "  reading: 5 rows after 61 s"


def test_a_bar_tells_where_the_stage_stands() -> None:
    said = Said(terminal=True, width=160)
    with said.reporter.progress("pairs", 1000, "pairs") as advance:
        said.reporter.detail("XY: block 3 of 12")
        advance(250)
    assert "XY: block 3 of 12" in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said.err)


@pytest.mark.parametrize("terminal", [False, True])
def test_a_stage_that_fails_does_not_look_finished(terminal: bool) -> None:
    said = Said(terminal=terminal)

    def fail() -> None:
        with said.reporter.progress("reading", 10) as advance:
            advance(3)
            raise KeyError("x")

    with pytest.raises(KeyError):
        fail()
    assert " in 0.0 s" not in said.err


def test_advance_counts_right_from_many_threads() -> None:
    said = Said()

    def work(advance: Callable[[float], None]) -> None:
        for _ in range(5000):
            advance(1)

    with said.reporter.progress("reading", unit="rows") as advance:
        threads = [threading.Thread(target=work, args=(advance,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert "40,000 rows" in said.err


def test_amounts() -> None:
    assert size_text(12345, "rows") == "12,345 rows"
    assert size_text(1.234e9, "B") == "1.23 GB"
    assert size_text(12, "B") == "12 B"
    assert size_text(5e15, "B") == "5,000.0 TB"
    assert done_text(200, 1000, "rows") == "200 of 1,000 rows"
    assert done_text(2e6, 1e9, "B") == "2 MB of 1 GB"
    assert done_text(200, None, "rows") == "200 rows"


def test_without_numbers_only_what_is_known_is_said() -> None:
    said = Said()
    said.reporter.verdict_table(
        VerdictSummary("insufficient", "2026-W45", "none", 3, 30, reason="3 rows, at least 100 are needed")
    )
    assert said.out.splitlines() == [
        "INSUFFICIENT  No verdict for 2026-W45: 3 rows, at least 100 are needed.",
        "  window          2026-W45",
        "  reference       none",
        "  rows            3",
        "  exit code       30",
    ]


def test_wide_names_give_way_in_tables() -> None:
    said = Said()
    summary = VerdictSummary("stable", "w", "r", 3, 0, score=0.1, metrics=(("m" * 300, 1.0, 0.5), ("short", 2.0, None)))
    said.reporter.verdict_table(summary)
    rows = [line for line in said.out.splitlines() if line.startswith(("  mmm", "  short"))]
    assert len(rows) == 2
    assert len(rows[0]) == WIDTH
    assert "..." in rows[0]
    assert len(rows[1]) <= WIDTH


def test_history_is_counted_and_its_end_listed(long_history: list[HistoryPoint]) -> None:
    said = Said()
    said.reporter.history_table(long_history, last=3)
    lines = said.out.splitlines()
    assert lines[0].startswith("300 windows: 253 stable, 1 warning, 44 alert, 2 insufficient")
    assert [line.split()[0] for line in lines[2:]] == [p.window.label for p in long_history[-3:]]
    said = Said()
    empty = [dataclasses.replace(p, rows=0, verdict="insufficient") for p in long_history[-3:]]
    said.reporter.history_table([*long_history[:-3], *empty], last=3)  # windows without rows are counted, not listed
    assert "5 insufficient" in said.out
    assert [line.split()[0] for line in said.out.splitlines()[2:]] == [p.window.label for p in long_history[-6:-3]]
    said = Said()
    said.reporter.history_table([])
    assert said.out == "0 windows: none\n"


def told(alert: VerdictSummary, **changes: object) -> list[str]:
    said = Said()
    said.reporter.verdict_table(dataclasses.replace(alert, **changes))  # type: ignore[arg-type]
    return said.out.splitlines()


def test_what_changed_and_who_moved_stand_in_their_places(alert: VerdictSummary) -> None:
    lines = told(
        alert,
        phenomena=("A new cluster holds 11% of the rows.", "The mean moved."),
        clusters=("new: topic=a", "grown: topic=b", "shrunk: topic=c", "gone: topic=d"),
        segments=("topic=a",),
        lagged=("against 2026-W42, the window before: stable, 1.1x", "against 2025-W43, a year ago: alert, 12x"),
    )
    names = [line[2:16].strip() for line in lines if line[2:3].strip()]
    assert names[1:4] == ["what changed", "what changed", "window"]
    assert names[names.index("residual_energy"[:14]) + 1 :] == [
        *["cluster"] * 3,
        "segment",
        *["comparison"] * 2,
        *["note"] * 2,
        "wrote",
        "exit code",
    ]
    assert "  what changed    The mean moved." in lines
    assert "  comparison      against 2025-W43, a year ago: alert, 12x" in lines
    assert not any("topic=d" in line for line in lines)


def test_gating_metrics_have_their_p_and_a_mark(alert: VerdictSummary) -> None:
    gates = (
        GateLine("energy", 0.0171, 0.00015, True),
        GateLine("residual_energy", -0.002, 0.4, False),
        GateLine("classifier_auc", 0.123, 1e-9, True),
    )
    lines = told(alert, gates=gates)
    head = next(k for k, line in enumerate(lines) if line.startswith("  metric"))
    assert [line.split() for line in lines[head : head + 5]] == [
        ["metric", "value", "se", "p"],
        ["energy", "0.0171", "0.002", "0.00015", "beyond"],
        ["mmd2_x0.5", "0.00312", "0.0002", "-"],
        ["residual_energy", "-0.002", "-", "0.4"],
        ["classifier_auc", "0.123", "-", "<0.0001", "beyond"],
    ]
    assert len({line.index(line.split()[3]) + len(line.split()[3]) for line in lines[head : head + 5]}) == 1


def test_sentences_are_wrapped_below_where_they_begin(alert: VerdictSummary) -> None:
    sentence = (
        "A cluster of the rows is new " * 9 + "some-id-that-is-hyphenated " * 7 + "x" * 150 + " \x1b[31m[bold]end"
    )
    fields = dict.fromkeys(("phenomena", "clusters", "segments", "lagged"), (sentence,))
    lines = told(alert, **fields)
    assert all(len(line) <= WIDTH for line in lines[1:])
    at = next(k for k, line in enumerate(lines) if line.startswith("  cluster"))
    after = next(k for k, line in enumerate(lines) if line.startswith("  segment"))
    assert all(line.startswith(" " * 18) for line in lines[at + 1 : after])
    words = " ".join(line[18:] for line in lines[at:after])
    assert words.replace(" ", "") == sentence.replace("\x1b", "?").replace(" ", "")
    assert words.count("some-id-that-is-hyphenated") == 7
    narrow = Said(terminal=True, width=60)
    narrow.reporter.verdict_table(dataclasses.replace(alert, phenomena=(sentence,), outputs=(), notes=()))
    plain = re.sub(r"\x1b\[[0-9;]*m", "", narrow.out).splitlines()
    start = next(k for k, line in enumerate(plain) if line.startswith("  what changed"))
    end = next(k for k, line in enumerate(plain) if line.startswith("  window"))
    assert end - start > 5
    assert all(len(line) <= 60 for line in plain[start:end])


def test_quiet_says_the_sentence_alone(alert: VerdictSummary) -> None:
    said = Said(quiet=True)
    said.reporter.verdict_table(dataclasses.replace(alert, phenomena=("a",), clusters=("b",), lagged=("c",)))
    assert said.out.count("\n") == 1


def test_the_p_of_the_distance_is_the_adjusted_one_wherever_it_stands(alert: VerdictSummary) -> None:
    gates = (GateLine("energy", 0.0171, 0.0004, True, True), GateLine("classifier_auc", 0.3, 0.00002, True, True))
    lines = told(alert, p_aa=0.00013, gates=gates)
    assert "(p=0.0004)" in lines[0]
    assert any(line.startswith("  usual movement") and line.endswith("p 0.0004") for line in lines)
    assert any(re.match(r"  energy +0.0171 +\S+ +0.0004 +beyond$", line) for line in lines)
    assert "0.00013" not in "\n".join(lines)


def test_the_history_shows_the_p_the_verdict_is_made_of(long_history: list[HistoryPoint]) -> None:
    gates = tuple(
        GateMetric(name, 0.1, 0.02, None, 0.05, p / 6, p, None, 0.2, 0.5)
        for name, p in (("energy", 0.05), ("classifier_auc", 0.033))
    )
    said = Said()
    said.reporter.history_table([dataclasses.replace(long_history[-1], p_aa=0.0071, gates=gates)])
    assert "0.033" in said.out
    assert "0.0071" not in said.out


def test_without_a_verdict_nothing_is_judged(alert: VerdictSummary) -> None:
    lines = told(alert, verdict="insufficient", reason="9% of the rows are unusable")
    assert "  score           0.0171 +- 0.002 (95% interval 0.0131 to 0.0211)" in lines
    assert not any(line.startswith(("  usual movement", "  tolerance")) for line in lines)
