"""The HTML reports: what is in them, that data cannot break them, and which files there are."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from html_pages import HOSTILE, Found, checked, drifted, outcomes, parsed, points, short, spoiled_found, without_time
from hypothesis import given, settings
from hypothesis import strategies as st
from make_outcomes import make_finding, make_outcomes

from gpudrift.outcomes.records import Level
from gpudrift.report.html import backfill, index, texts
from gpudrift.report.html.backfill import episodes, render_backfill, write_backfill
from gpudrift.report.html.figures import source
from gpudrift.report.html.outcomes import metrics_part
from gpudrift.report.html.page import write_run
from gpudrift.report.html.sparkline import Mark, sparkline
from gpudrift.report.style import Picture
from gpudrift.report.wording import plain_sentence, printable
from gpudrift.verdict import PASSED_OVER


@pytest.fixture(scope="session")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return drifted(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def few(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return short(tmp_path_factory.getbasetemp())


# what is in the report of a run


def test_a_run_leaves_its_report(few: Found, tmp_path_factory: pytest.TempPathFactory) -> None:
    output = tmp_path_factory.getbasetemp() / "html-short-out"
    own = (output / "reports" / "2026-W15.html").read_text(encoding="utf-8")
    assert own == few.page()
    assert (output / "report.html").read_text(encoding="utf-8") == own.replace('"../index.html"', '"index.html"')
    assert "2026-W15" in checked((output / "index.html").read_text(encoding="utf-8")).text


def test_everything_a_run_found_is_in_its_report(found: Found) -> None:
    page = checked(found.page())
    text = page.text
    titles = [title.text for title in page.all("h2")]
    assert titles == [
        *("History", "What moved", "Where the rows lie", "Product metrics beside the drift", "How sure that is"),
        *("Data quality", "Notes", "How it was made", "Words"),
    ]
    assert page.all("h1")[0].text.startswith(found.summary.verdict)
    assert plain_sentence(found.summary) in text
    for told in (*found.summary.phenomena, *found.result["notes"]):
        assert printable(told) in text
    attribution = found.result["attribution"]
    changed = [cluster for cluster in attribution["clusters"] if cluster["kind"] != "same"]
    assert changed
    assert all(f"cluster {cluster['index']}" in text and cluster["ids"][0] in text for cluster in changed)
    assert all(segment["name"] in text for segment in found.result["segments"])
    assert found.rows is not None
    top = found.rows.slice(0, 20).to_pylist()
    assert all(row["id"] in text and row["nearest_reference_id"] in text for row in top)
    assert found.rows["id"][20].as_py() not in [head.text for head in page.all("th")]
    assert all(gate["metric"] in text for gate in found.result["gates"])
    assert all(window["label"] in text for window in found.result["reference"]["windows"])
    assert all(version in text for version in found.result["versions"].values())
    assert "min_windows: 8" in page.all("pre")[0].text
    words = page.elements[[e.attributes.get("id") for e in page.elements].index("words") :]
    assert sum(element.tag == "dt" for element in words) == 8


def test_all_pictures_but_the_summary_are_in_the_page_itself(found: Found) -> None:
    page = checked(found.page())
    named = {picture.png.stem: picture for picture in found.pictures}
    assert {"history", "clusters", "witness", "segments", "pca", "pc1", "components", "summary"} <= named.keys()
    shown = {image.attributes["alt"]: image.attributes["src"] for image in page.all("img")}
    assert shown == {p.alt_text: str(source(p)) for name, p in named.items() if name != "summary"}
    assert all(caption.text.strip() for caption in page.all("figcaption"))


def test_product_metrics_are_told_and_nothing_is_said_to_be_caused(found: Found) -> None:
    text = checked(found.page()).text
    assert "falls by 1.2 points where the score doubles" in text
    assert "success_rate, lower is worse worse with drift 1 −0.012 (−0.020 to −0.0040)" in text
    assert "Insufficient windows: success_rate of language=de, 7 of the 20 that are needed." in text
    assert "−0.77" not in text  # an effect that too few windows show is none
    assert "0.81 in 2026-W15, usual 0.86, limit 0.83: beyond its limit" in text
    assert "1 of 1" in text
    assert "3 windows lack it" in text
    assert "cause" not in text.replace("because", "")


def test_pictures_of_other_names_belong_to_the_product_metrics(found: Found) -> None:
    history = found.pictures[[p.png.stem for p in found.pictures].index("history")]
    other = history._replace(
        png=copied(history.png, "outcomes"), svg=copied(history.svg, "outcomes"), alt_text="Rates."
    )
    page = checked(replace(found, pictures=(*found.pictures, other)).page())
    images = [image.attributes["alt"] for image in page.all("img")]
    assert images[-1] == "Rates."
    assert "Rates." not in checked(replace(found, pictures=(*found.pictures, other), outcomes=None).page()).text


def copied(path: Path, name: str) -> Path:
    other = path.with_stem(name)
    other.write_bytes(path.read_bytes())
    return other


def test_missing_parts_vanish(found: Found) -> None:
    page = checked(replace(found, outcomes=None, rows=None, pictures=(), history=()).page())
    titles = [title.text for title in page.all("h2")]
    assert titles == ["What moved", "How sure that is", "Data quality", "Notes", "How it was made", "Words"]
    assert page.all("img") == []
    bare = copy.deepcopy(found.result)
    bare |= {"notes": [], "attribution": None, "segments": [], "gates": [], "calibration": None, "compared": []}
    bare |= {"metrics": {}, "quality": None, "encoder": None, "previous": None, "p_panel": None}
    summary = replace(found.summary, metrics=(), gates=())
    left = checked(
        replace(found, result=bare, summary=summary, outcomes=None, rows=None, pictures=(), history=()).page()
    )
    assert [title.text for title in left.all("h2")] == ["How it was made", "Words"]


def test_a_report_without_a_verdict_is_useful_too(few: Found) -> None:
    assert few.result["verdict"] == "insufficient"
    page = checked(few.page())
    assert page.all("h1")[0].text.startswith("insufficient")
    assert "20 rows" in page.text
    assert "neither that the data moved nor that they did not" in page.text
    assert [image.attributes["alt"][:12] for image in page.all("img")] == ["How far each"]
    assert "What moved" not in page.text
    assert "Kept at" in page.text


@pytest.mark.parametrize("verdict", ["stable", "warning", "alert", "insufficient"])
def test_the_verdict_is_told_by_words(found: Found, verdict: str) -> None:
    summary = replace(found.summary, verdict=verdict)  # type: ignore[arg-type]
    page = checked(replace(found, summary=summary, pictures=()).page())
    assert page.all("h1")[0].text.startswith(verdict)
    assert verdict in page.all("title")[0].text


def test_bad_rows_are_told_with_examples(found: Found) -> None:
    result = copy.deepcopy(found.result)
    result["quality"]["dropped"] = {"null": 4, "zero": 0}
    result["quality"]["examples"] = {"null": ["row-a", "row-b"]}
    result["quality"]["duplicates"] = {"rows": 7, "largest": 3, "examples": ["twin"]}
    text = checked(replace(found, result=result, pictures=()).page()).text
    assert "dropped: no vector 4 row-a, row-b" in text
    assert "kept: duplicate rows 7 twin" in text
    assert "vector of zeros" not in text


def test_secrets_in_addresses_are_not_shown(found: Found) -> None:
    result = copy.deepcopy(found.result)
    result["config"]["source"]["uri"] = "https://me:hunter2@host/x?sig=abcdef&part=1"
    page = found.page()
    shown = replace(found, result=result).page()
    assert "https://me:***@host/x?sig=***&amp;part=1" in shown
    assert "hunter2" not in shown + page
    assert "url_env: GPUDRIFT_WEBHOOK_URL" in page


# bytes


def test_the_same_input_gives_the_same_bytes_but_for_one_line(found: Found) -> None:
    assert found.page() == found.page()
    later = copy.deepcopy(found.result)
    later["run"] = {
        "ended": datetime(2030, 1, 1, tzinfo=UTC),
        "seconds": {"read": 9.0},
        "reference": "x",
        "previous": "y",
    }
    again = replace(found, result=later).page()
    assert again != found.page()
    assert without_time(again, "Run of ") == without_time(found.page(), "Run of ")


def test_a_result_read_from_its_file_gives_the_same_page(found: Found) -> None:
    from gpudrift.files import jsonable

    read = json.loads(json.dumps(jsonable(found.result)))
    assert replace(found, result=read).page() == found.page()


def test_the_smaller_picture_is_taken(tmp_path: Path) -> None:
    picture = Picture(tmp_path / "a.png", tmp_path / "a.svg", "alt")
    picture.png.write_bytes(b"p" * 100)
    picture.svg.write_bytes(b"s" * 125)
    assert source(picture).startswith("data:image/svg+xml;base64,c3Nz")
    picture.svg.write_bytes(b"s" * 126)
    assert source(picture).startswith("data:image/png;base64,cHBw")


# hostile data


def test_hostile_data_break_nothing(found: Found) -> None:
    page = checked(spoiled_found(found, HOSTILE).page())
    assert page.shape == parsed(spoiled_found(found, "x").page()).shape
    text = page.text
    assert "<script>alert(1)</script>" in text
    assert "{{ 7*7 }}" in text
    assert "49" not in page.all("h1")[0].text
    assert not any(letter in text for letter in "\u202e\u2066\u200f\0\x1b\ud800")
    assert "W" * 1_000 not in text
    assert "\u0301" * 5 not in text
    page.all("h1")[0].text.encode("utf-8")


@settings(max_examples=25)
@given(text=st.text(min_size=1, max_size=80).filter(lambda text: bool(texts.tidy(text).strip(". "))))
def test_no_text_changes_the_shape_of_a_page(found: Found, text: str) -> None:
    plain = replace(found, pictures=())
    page = checked(spoiled_found(plain, text).page())
    assert page.shape == parsed(spoiled_found(plain, "x").page()).shape
    assert " ".join(texts.tidy(text, 64).split()) in page.text


@settings(max_examples=25)
@given(st.text(min_size=1, max_size=80))
def test_no_text_changes_the_shape_of_the_index(text: str) -> None:
    entry = replace(_entry("2026-W01"), job=text, window=text, sentence=text, reference=text)
    page = checked(index.render_index(text, [entry, replace(entry, reference="other")], [text]))
    benign = replace(entry, job="x", window="x", sentence="x", reference="x")
    assert page.shape == parsed(index.render_index("x", [benign, replace(benign, reference="other")], ["x"])).shape


@given(st.text(max_size=300), st.integers(2, 40))
def test_a_tidied_text_is_one_short_line(text: str, limit: int) -> None:
    tidied = texts.tidy(text, limit)
    assert len(tidied) <= limit
    assert tidied == texts.tidy(tidied, limit)
    assert len(tidied.splitlines()) <= 1
    assert tidied.isprintable()
    assert tidied.encode("utf-8") or not tidied


def test_text_that_is_cut_ends_in_an_ellipsis() -> None:
    assert texts.tidy("abcdef", 6) == "abcdef"
    assert texts.tidy("abcdefg", 6) == "abcde…"
    assert texts.tidy("a" + "\u0301" * 9 + "b") == "a" + "\u0301" * texts.MARKS + "b"
    assert str(texts.data("<b>")) == "<bdi>&lt;b&gt;</bdi>"


def test_settings_are_cut_and_stay_yaml() -> None:
    import html

    import yaml

    told = {"a": {"b": [1, 2.5, None, True]}, "long": "x" * 5000, "many": list(range(500)), "n\ny": "<b> \n: - #"}
    read = yaml.safe_load(html.unescape(str(texts.settings_text(told))))
    assert read["a"] == told["a"]
    assert len(read["long"]) == texts.VALUE_LETTERS
    assert read["many"] == [*range(texts.ENTRIES), "…"]
    assert read["n y"] == "<b> : - #"


# files, pruning, index


def _write(
    directory: Path, found: Found, label: str, week: int, keep: int = 400, **changes: object
) -> tuple[Path, ...]:
    """A run of the week's window, without its pictures."""
    window = points(" " * week + "s")[0].window
    result = copy.deepcopy(found.result) | {
        "window": {"label": label, "start": window.start, "end": window.end, "complete": True}
    }
    result |= changes
    summary = replace(found.summary, window=label)
    return write_run(directory, result, summary, (), found.rows, found.history, None, keep=keep)


def test_what_a_run_writes(found: Found, tmp_path: Path) -> None:
    written = _write(tmp_path, found, "2026-W05", 4)
    assert [path.relative_to(tmp_path).as_posix() for path in written] == [
        *("report.html", "reports/2026-W05.html", "index.html"),
    ]
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [
        *("2026-W05.html", "2026-W05.json", "index.html", "report.html"),
    ]
    assert 'href="index.html"' in written[0].read_text(encoding="utf-8")
    assert 'href="../index.html"' in written[1].read_text(encoding="utf-8")
    told = json.loads((tmp_path / "reports" / "2026-W05.json").read_text(encoding="utf-8"))
    assert told == {
        "job": "job",
        "window": "2026-W05",
        "start": "2026-02-02T00:00:00+00:00",
        "end": "2026-02-09T00:00:00+00:00",
        "verdict": found.summary.verdict,
        "score": found.summary.score,
        "ratio": found.summary.ratio,
        "p": found.result["p_panel"],
        "limit": found.summary.delta,
        "rows": found.summary.rows,
        "sentence": plain_sentence(replace(found.summary, window="2026-W05"), name_reference=False),
        "reference": found.result["reference"]["id"],
        "ended": found.result["run"]["ended"].isoformat(),
    }


def test_a_rerun_replaces_its_report_and_another_window_stands_beside_it(found: Found, tmp_path: Path) -> None:
    _write(tmp_path, found, "2026-W05", 4)
    before = (tmp_path / "index.html").read_bytes()
    _write(tmp_path, found, "2026-W05", 4)
    assert (tmp_path / "index.html").read_bytes() == before
    _write(tmp_path, found, "2026-W04", 3)
    page = checked((tmp_path / "index.html").read_text(encoding="utf-8"))
    links = [a.attributes["href"] for a in page.all("a") if a.inside.count("th")]
    assert links == ["reports/2026-W05.html", "reports/2026-W04.html"]  # the newest window first, whichever ran last


def test_all_but_the_newest_windows_are_pruned(found: Found, tmp_path: Path) -> None:
    for week in (5, 2, 9, 1):
        _write(tmp_path, found, f"2026-W{week:02d}", week, keep=3)
    stems = sorted(path.name for path in (tmp_path / "reports").iterdir())
    assert stems == [f"2026-W{week:02d}.{kind}" for week in (2, 5, 9) for kind in ("html", "json")]
    assert "2026-W01" not in (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "2026-W01" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_other_jobs_and_files_stay(found: Found, tmp_path: Path) -> None:
    _write(tmp_path, found, "2026-W08", 8, job="other")
    (tmp_path / "reports" / "notes.txt").write_text("mine", encoding="utf-8")
    for week in (1, 2):
        _write(tmp_path, found, f"2026-W{week:02d}", week, keep=1)
    assert sorted(path.name for path in (tmp_path / "reports").iterdir()) == [
        *("2026-W02.html", "2026-W02.json", "2026-W08.html", "2026-W08.json", "notes.txt"),
    ]
    assert "2026-W08" not in (tmp_path / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "damage",
    [
        *("", "{", "[]", "null", "[" * 100_000),
        *('{"rows": 1' + 400 * "0" + "}", '{"score": 1' + 400 * "0" + "}"),
        *('{"verdict": "calm"}', '{"score": "1"}', '{"score": NaN}', '{"rows": 1.5}', '{"rows": true}'),
        *('{"window": "2026-W99"}', '{"start": "soon"}', '{"start": "2026-01-05"}', '{"sentence": null}'),
    ],
)
def test_a_damaged_entry_is_named_and_stops_nothing(found: Found, tmp_path: Path, damage: str) -> None:
    _write(tmp_path, found, "2026-W01", 1)
    path = tmp_path / "reports" / "2026-W01.json"
    text = damage
    if damage.startswith('{"'):
        text = json.dumps(json.loads(path.read_text(encoding="utf-8")) | json.loads(damage))
    path.write_text(text, encoding="utf-8")
    _write(tmp_path, found, "2026-W02", 2, keep=1)
    page = checked((tmp_path / "index.html").read_text(encoding="utf-8"))
    assert "Not listed" in page.text
    assert "2026-W01.json" in page.text
    assert path.exists()


def _entry(window: str, verdict: str = "stable", **changes: object) -> index.Entry:
    known = index.Entry(
        "weekly", window, "2026-01-05T00:00:00+00:00", "2026-01-12T00:00:00+00:00", "stable", 0.001, 1.0, 0.4, 0.003,
        100, f"{window} shows no drift.", "abc", "2026-02-01T00:00:00+00:00",
    )  # fmt: skip
    return replace(known, verdict=verdict, **changes)  # type: ignore[arg-type]


def test_the_index_tells_every_run() -> None:
    runs = [
        _entry("2026-W03", "alert", score=0.02, ratio=21.0, p=1e-9, rows=4321, ended="2026-03-01T10:20:00+00:00"),
        _entry("2026-W02", "insufficient", score=None, ratio=None, p=None, limit=None, rows=3),
        _entry("2026-W01", reference="old"),
    ]
    page = checked(index.render_index("weekly", runs))
    cells = [row.text for row in page.all("tr")]
    assert cells[1] == "2026-W03 alert 21x 0.02 <0.0001 4,321 2026-W03 shows no drift. "
    assert cells[2] == "2026-W02 insufficient - - - 3 2026-W02 shows no drift. "
    assert cells[3] == "From here up the reference is abc; scores below are against another one. "
    assert cells[4].startswith("2026-W01 stable")
    choices = [label.text.strip() for label in page.all("label")]
    assert choices == ["all 3", "alert 1", "stable 1", "insufficient 1"]
    assert len(page.all("svg")) == 1
    assert "Last run 2026-03-01 10:20 UTC" in page.text


def test_an_index_of_400_runs_is_small_and_the_same_each_time() -> None:
    runs = [_entry(f"2020-W{k:03d}", "alert" if k % 9 == 0 else "stable") for k in range(400, 0, -1)]
    page = index.render_index("weekly", runs)
    assert page == index.render_index("weekly", runs)
    assert len(page) < 300_000
    assert len(checked(page).all("tr")) == 401
    later = [replace(run, ended="2030-01-01T00:00:00+00:00") for run in runs]
    assert without_time(index.render_index("weekly", later), "Last run") == without_time(page, "Last run")


def test_an_index_without_runs_is_a_page() -> None:
    assert "No run has a report yet" in checked(index.render_index("weekly", [])).text


def test_the_line_of_the_sparkline_breaks_where_windows_are_missing() -> None:
    marks = [Mark(f"w{k}", "stable", 0.001 * k, 0.003, joined=k not in (0, 3)) for k in range(6)]
    drawn = str(sparkline(marks))
    line = drawn.split('class="score" d="')[1].split('"')[0]
    assert line.count("M") == 2
    assert line.count("L") == 4
    assert drawn.count("<circle") == 6
    without = [*marks[:2], replace(marks[2], score=None), *marks[3:]]
    line = str(sparkline(without)).split('class="score" d="')[1].split('"')[0]
    assert (line.count("M"), line.count("L")) == (2, 3)
    assert sparkline(marks[:1]) is None


@given(st.lists(st.tuples(st.floats(-1, 1e30) | st.none(), st.floats(0, 1e3) | st.none()), max_size=30))
def test_every_point_of_a_sparkline_lies_inside_it(values: list[tuple[float | None, float | None]]) -> None:
    marks = [Mark(f"w{k}", "warning", score, limit, joined=k > 0) for k, (score, limit) in enumerate(values)]
    drawn = sparkline([replace(mark, verdict="stable") for mark in marks])
    if drawn is not None:
        circles = parsed(f"<body>{drawn}</body>").all("circle")
        assert all(0 <= float(c.attributes["cx"]) <= 1000 and 0 <= float(c.attributes["cy"]) <= 110 for c in circles)


def test_the_sentences_of_metrics_are_findings_alone_for_the_table_has_the_rest() -> None:
    part = metrics_part(make_outcomes(findings=[make_finding(name) for name in "abcde"]), {})
    assert part is not None
    assert part.ranked is not None
    assert [text[:2] for text in part.sentences] == ["a ", "b ", "c "]
    assert len(part.ranked.rows) == 5


def test_metrics_in_units_of_any_size() -> None:
    level = Level("2025-W08", 1186224.0, None, 1234857.8, 1220414.9, 0.001, 20, True)
    finding = replace(
        make_finding("revenue", worse="lower", link="worse"), level=level, effect=-5512.3, ci=(-8712.0, -2212.0)
    )
    part = metrics_part(make_outcomes(findings=[finding]), {})
    assert part is not None
    assert part.ranked is not None
    assert (
        part.ranked.rows[0][-1]
        == "1,186,224 in <bdi>2025-W08</bdi>, usual 1,234,858, limit 1,220,415: beyond its limit"
    )
    assert part.ranked.rows[0][3] == "−5,500 <br>(−8,700 to −2,200)"


# backfill


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ("ssss", []),
        ("swas", ["wa"]),
        ("wsaa", ["w", "aa"]),
        ("iwiaisi", ["wia"]),
        ("siis", []),
        ("aa aa", ["aa", "aa"]),
        ("wiiia", ["wiiia"]),
        ("waiiiiw", ["wa", "w"]),
        ("", []),
    ],
)
def test_spells_of_drift(verdicts: str, expected: list[str]) -> None:
    found = episodes(points(verdicts)[::-1])
    assert ["".join(point.verdict[0] for point in spell.points) for spell in found] == expected
    assert [spell.verdict for spell in found] == ["alert" if "a" in text else "warning" for text in expected]


def test_a_spell_goes_on_over_as_many_silent_windows_as_an_alert_does() -> None:
    assert backfill.MOST_SILENT == PASSED_OVER


def test_the_report_of_a_backfill(found: Found, tmp_path: Path) -> None:
    _write(tmp_path, found, "2026-W03", 2)
    windows = points("sswaaisssw")
    written = write_backfill(
        tmp_path, "job", "2025, 12 windows", windows, found.pictures, outcomes(tuple(windows)), ["a note"], {"seed": 3}
    )
    assert [path.name for path in written] == ["backfill.html", "index.html"]
    page = checked(written[0].read_text(encoding="utf-8"))
    assert "9 windows were compared with the reference (2025, 12 windows); 1 more has too little data." in page.text
    assert "The data drifted 2 times, 1 of them with an alert. 2026-W06 lies furthest away, 20 times" in page.text
    assert "50% of 10 windows" in page.text
    spells = page.elements[[e.attributes.get("id") for e in page.elements].index("episodes") :]
    rows = [row.text for row in spells if row.tag == "tr"][1:3]
    assert rows == [
        "2026-W11 2026-W11 warning 1 0.004 4.1x 2026-W11 ",
        "2026-W04 2026-W06 alert 3 0.02 20x 2026-W05 ",
    ]
    assert {a.attributes["href"] for a in page.all("a") if a.inside.count("th")} == {"reports/2026-W03.html"}
    named = {picture.png.stem: picture.alt_text for picture in found.pictures}
    images = [image.attributes["alt"] for image in page.all("img")]
    assert images[:2] == [named["history"], named["segments"]]
    assert "a note" in page.text
    assert "seed: 3" in page.text
    assert 'href="backfill.html"' in written[1].read_text(encoding="utf-8")
    assert "All 10 windows" in page.text
    assert "Product metrics beside the drift" in page.text


@pytest.mark.parametrize(
    ("verdicts", "told"),
    [
        (
            "sssi",
            "3 windows were compared with the reference (2025); 1 more has too little data. None of them drifted.",
        ),
        ("sii", "1 window was compared with the reference (2025); 2 more have too little data."),
        ("ii", "None of 2 windows has enough data for a comparison with the reference (2025)."),
        ("i", "The window has not enough data for a comparison with the reference (2025)."),
        ("ssaas", "5 windows were compared with the reference (2025). The data drifted once, with an alert."),
        ("ssws", "The data drifted once, without an alert."),
        ("waasws", "The data drifted 2 times, 1 of them with an alert."),
        ("aasws aa", "The data drifted 3 times, 2 of them with an alert."),
        ("asa", "The data drifted 2 times, always with an alert."),
        ("wsw", "The data drifted 2 times, never with an alert."),
    ],
)
def test_a_backfill_says_what_could_be_compared_and_how_often_it_drifted(verdicts: str, told: str) -> None:
    assert told in parsed(render_backfill("job", "2025", points(verdicts), (), None, (), {})).text


def test_a_backfill_is_the_same_bytes_but_for_its_time() -> None:
    windows = points("ssws")
    pages = [
        render_backfill("job", "2025", windows, (), None, (), {}, ended=datetime(2026, 1, day, tzinfo=UTC))
        for day in (1, 2)
    ]
    assert pages[0] != pages[1]
    assert without_time(pages[0], "Backfill of 2026") == without_time(pages[1], "Backfill of 2026")


@pytest.mark.parametrize("verdicts", ["", "iii", "s"])
def test_a_backfill_without_scores_is_a_page(verdicts: str) -> None:
    checked(render_backfill("job", HOSTILE, points(verdicts), (), None, (HOSTILE,), {HOSTILE: HOSTILE}))


def test_a_metric_keeps_the_first_letter_of_its_name() -> None:
    findings = [make_finding("no_answer_rate", sentence="no_answer_rate rises", degraded=None),
                make_finding("clicks", sentence="no link found: clicks", link="none", degraded=None)]  # fmt: skip
    part = metrics_part(make_outcomes(findings=findings), {})
    assert part is not None
    assert part.sentences == ("no_answer_rate rises.", "No link found: clicks.")
