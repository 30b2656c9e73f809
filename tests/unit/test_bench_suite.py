"""The benchmark's arithmetic: a row with losses is never a good one, ratios are of one run, plots show what was given.

What needs a C compiler is checked by `python -m bench.guard`.
"""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest

from bench import hot_path
from bench.guard import HOT_PATH, THRESHOLDS, busy, judged, judged_hot_path, ratio
from bench.machine import LOAD_CORE, SERVER_CORE, children, on_core, verdict
from bench.plot import HEIGHT, WIDTH, Line, Plot, plots, svg, tick_label
from bench.provider import answer_of, chunk
from bench.rivals import RIVALS
from bench.row import Busy, Figures, Row, Summary, per_event, row_of, spread, summaries
from bench.table import number, table, tables
from bench.workload import Outcome
from bench.workloads import WORKLOADS
from bench.workloads.ceiling import holds
from bench.workloads.day import growth_a_minute
from broker.joined import behind, rows_of, split

HEADLINE = {"W1": "total_us"}
QUIET = Busy(steal=0.0, others=0.01)


def row(contender: str = "legato", *, total: float | None = 10.0, round_: int = 1, **more: object) -> Row:
    made = Row(
        workload="W1",
        contender=contender,
        round=round_,
        point="100 streams",
        x=100,
        figures=Figures(total_us=total, p99_ms=1.0, events_per_second=5000.0),
    )
    return replace(made, **more)  # type: ignore[arg-type]


def summary(contender: str = "legato", **more: object) -> Summary:
    return replace(summaries([row(contender)], HEADLINE)[0], **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("fault", ["gaps", "duplicates", "missing", "errors"])
def test_a_row_with_any_loss_or_duplicate_is_invalid(fault: str) -> None:
    assert row().valid
    assert not row(**{fault: 1}).valid


def test_a_row_survives_being_written_as_json() -> None:
    before = row(gaps=2, note="late", busy=QUIET)
    text = json.dumps(before.as_json())
    assert row_of(json.loads(text)) == before
    assert "store_us" not in json.loads(text)["figures"], "what was not measured is not there"


def test_cost_an_event_is_unknown_when_nothing_was_delivered() -> None:
    assert per_event(5000, 100) == 50
    assert per_event(5000, 0) is None


def test_medians_are_taken_over_rounds_and_ratios_over_legato_of_the_same_run() -> None:
    rows = [row(total=value, round_=n) for n, value in enumerate([8.0, 12.0, 10.0])]
    rows += [row("rival", total=value, round_=n) for n, value in enumerate([30.0, 20.0, 90.0])]
    legato, rival = summaries(rows, HEADLINE)
    assert (legato.figures.total_us, legato.ratio, legato.rounds) == (10.0, 1.0, 3)
    assert (rival.figures.total_us, rival.ratio) == (30.0, 3.0)
    assert legato.spread == pytest.approx(0.4)
    assert not rival.fit


def test_there_is_no_ratio_without_legato_or_without_the_figure() -> None:
    (alone,) = summaries([row("rival")], HEADLINE)
    assert alone.ratio is None
    _, unmeasured = summaries([row(), row("rival", total=None)], HEADLINE)
    assert unmeasured.ratio is None
    assert unmeasured.figures.total_us is None


def test_points_are_never_mixed() -> None:
    found = summaries([row(), row(point="200 streams", total=99.0)], HEADLINE)
    assert [(item.point, item.figures.total_us) for item in found] == [("100 streams", 10.0), ("200 streams", 99.0)]


def test_spread_of_one_value_or_of_none_is_nothing() -> None:
    assert spread([]) == spread([3.0]) == 0
    assert spread([1.0, 2.0, 3.0]) == 1.0


def test_a_table_marks_losses_and_wide_spreads_and_leaves_out_what_nobody_measured() -> None:
    rows = [row(total=10.0), row(total=20.0, round_=2), row("rival", total=30.0, missing=3)]
    text = table(summaries(rows, HEADLINE))
    head, _, legato, rival = text.splitlines()
    assert "total µs/event" in head
    assert "Redis µs/event" not in head
    assert "67% !" in legato
    assert "INVALID" in rival
    assert "INVALID" not in legato
    assert len({line.count("|") for line in text.splitlines()}) == 1
    assert tables(summaries(rows, HEADLINE), {"W1": "many streams"}).startswith("### W1: many streams")


def test_a_note_with_a_bar_does_not_break_the_table() -> None:
    lines = table([summary(note="a | b")]).splitlines()
    assert len({line.count("|") for line in lines}) == 1


def test_numbers_are_grouped_and_what_is_unknown_is_a_dash() -> None:
    assert number(12345.678, 1) == "12,345.7"
    assert number(0.0, 2) == "0.00"
    assert number(None, 2) == "–"


def test_a_quiet_machine_with_narrow_spreads_is_fit() -> None:
    assert verdict([summary()], [QUIET, QUIET]) == []


@pytest.mark.parametrize(
    ("spread_", "busy", "word"),
    [
        (0.0, Busy(steal=0.0, others=0.2), "other programs"),
        (0.0, Busy(steal=0.1, others=0.0), "hypervisor"),
        (0.3, QUIET, "spread"),
    ],
)
def test_a_run_is_unfit_when_anything_was_in_the_way(spread_: float, busy: Busy, word: str) -> None:
    (reason,) = verdict([summary(spread=spread_)], [QUIET, busy])
    assert word in reason


def test_server_and_load_have_a_core_each() -> None:
    assert SERVER_CORE != LOAD_CORE
    assert on_core(0, ["server", "--x"]) == ["taskset", "--cpu-list", "0", "server", "--x"]


def test_a_process_that_has_gone_has_no_children() -> None:
    assert children(2**30) == []


def test_a_plot_is_a_picture_with_a_line_for_each_contender_inside_its_frame() -> None:
    lines = (
        Line(name="legato", points=((1000, 5.0), (20_000, 4.0))),
        Line(name="a<b", points=((1000, 50.0), (20_000, 60.0))),
    )
    text = svg(Plot(title="Cost & rate", x_label="tokens/s", y_label="µs", lines=lines))
    root = ElementTree.fromstring(text)
    drawn = root.findall("{http://www.w3.org/2000/svg}polyline")
    assert len(drawn) == 2
    points = [tuple(map(float, pair.split(","))) for line in drawn for pair in line.attrib["points"].split()]
    assert all(0 < x < WIDTH and 0 < y < HEIGHT for x, y in points)
    assert points[2][1] < points[0][1], "what costs more is drawn higher"
    assert points[0][0] < points[1][0]
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"legato", "a<b", "Cost & rate"} <= set(texts)


def test_a_plot_of_one_value_can_be_drawn_and_one_of_nothing_cannot() -> None:
    one = Plot(title="t", x_label="x", y_label="y", lines=(Line(name="legato", points=((100, 7.0),)),))
    ElementTree.fromstring(svg(one))
    with pytest.raises(ValueError, match="points"):
        svg(replace(one, lines=()))


def test_plots_need_two_points_and_leave_out_lines_with_losses() -> None:
    rows = [row(), row(point="200 streams", x=200), row("rival", errors=1), row("rival", point="200 streams", x=200)]
    found = plots(summaries(rows, HEADLINE))
    assert "cost-over-viewers.svg" not in found
    assert "legato" in found["cost-over-rate.svg"]
    drawn = ElementTree.fromstring(found["cost-over-rate.svg"]).findall("{http://www.w3.org/2000/svg}circle")
    assert len(drawn) == 3


def test_ticks_are_short() -> None:
    assert [tick_label(value) for value in (0.1, 2.0, 50_000.0)] == ["0.1", "2", "50k"]


def test_a_ceiling_step_holds_only_whole_in_time_and_nearly_all() -> None:
    good = Outcome(figures=Figures(events_per_second=990.0, p99_ms=99.0))
    assert holds(good, 1000)
    assert not holds(replace(good, missing=1), 1000)
    assert not holds(good, 1100)
    assert not holds(replace(good, figures=Figures(events_per_second=1000.0, p99_ms=101.0)), 1000)
    assert not holds(replace(good, figures=Figures()), 1000)


def test_growth_is_between_the_first_third_and_the_last() -> None:
    assert growth_a_minute([100.0] * 90, 1.0) == 0
    assert growth_a_minute([float(n) for n in range(90)], 1.0) == pytest.approx(60)
    assert growth_a_minute([1.0, 2.0], 1.0) is None


def test_the_scripted_provider_is_told_its_answer_by_the_model() -> None:
    assert answer_of("t100-r50") == (100, 50.0)
    with pytest.raises(ValueError, match="no answer"):
        answer_of("gpt")
    size, data, _ = chunk({"content": "~"}, "stop").split(b"\r\n", 2)
    assert int(size, 16) == len(data)
    assert json.loads(data.removeprefix(b"data: "))["choices"][0] == {
        "index": 0,
        "delta": {"content": "~"},
        "finish_reason": "stop",
    }


def windows(**server_us: list[float | None]) -> dict[str, list[Outcome]]:
    """What the guard has measured of each contender, round by round; all of it server CPU."""
    return {
        name: [Outcome(figures=Figures(server_us=cost, total_us=cost), busy=QUIET) for cost in costs]
        for name, costs in server_us.items()
    }


def test_the_guard_passes_what_holds_and_names_what_does_not() -> None:
    floor, naive = [8.0, 8.0, 8.0], [100.0, 100.0, 100.0]
    assert judged(windows(legato=[30.0] * 3, c_floor=floor, naive_streaming=naive)) == []
    dear = judged(windows(legato=[50.0] * 3, c_floor=floor, naive_streaming=naive))
    assert len(dear) == 2
    assert any("floor" in problem for problem in dear)
    unknown = judged(windows(legato=[30.0, 30.0, None], c_floor=floor, naive_streaming=naive))
    assert len(unknown) == 3, "what was not measured does not hold"


def test_the_guard_compares_windows_of_one_round_and_is_not_moved_by_one_of_them() -> None:
    """A machine that is slow for a round is slow for all of it."""
    seen = windows(legato=[30.0, 300.0, 900.0], c_floor=[8.0, 80.0, 8.0], naive_streaming=[100.0, 1000.0, 100.0])
    assert judged(seen) == []
    assert ratio(seen, THRESHOLDS[0]) == 3.75


def test_the_guard_names_the_stretch_of_our_own_code_that_has_become_dearer() -> None:
    well = {name: most / 1.25 for name, most in HOT_PATH.items()}
    assert judged_hot_path(well) == []
    (problem,) = judged_hot_path(well | {"append": 2 * HOT_PATH["append"]})
    assert "append" in problem
    assert len(judged_hot_path(dict.fromkeys(HOT_PATH, float("nan")))) == 3, "what was not measured does not hold"


def test_an_object_for_each_stored_entry_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a replay did before rows were merged as they come."""
    before = hot_path.measured(goes=5)["replay"]
    monkeypatch.setattr(hot_path, "behind", lambda rows, seq: rows_of(split(behind(rows, seq))))
    dearer = hot_path.measured(goes=5)["replay"] / before
    free = dict.fromkeys(HOT_PATH, 0.0)
    assert judged_hot_path(free | {"replay": HOT_PATH["replay"] / 1.25}) == []
    assert len(judged_hot_path(free | {"replay": HOT_PATH["replay"] / 1.25 * dearer})) == 1


def test_the_guard_names_a_loss_whatever_it_cost() -> None:
    seen = windows(legato=[30.0] * 3, c_floor=[8.0] * 3, naive_streaming=[100.0] * 3)
    seen["legato"][1] = replace(seen["legato"][1], missing=2)
    (problem,) = judged(seen)
    assert problem.startswith("legato: in 1 of 3 windows")
    assert "2 missing" in problem


def test_the_guard_does_not_judge_on_a_machine_that_is_busy_most_of_the_time() -> None:
    seen = windows(legato=[30.0] * 3)
    assert busy(seen) is None
    seen["legato"][0] = replace(seen["legato"][0], busy=Busy(steal=0.0, others=0.9))
    assert busy(seen) is None
    seen["legato"][1] = replace(seen["legato"][1], busy=Busy(steal=0.0, others=0.5))
    assert "50%" in (busy(seen) or "")


def test_every_contender_takes_part_in_workloads_that_there_are_and_says_what_it_includes() -> None:
    for name, rival in RIVALS.items():
        assert rival.name == name
        assert rival.workloads
        assert rival.workloads <= WORKLOADS.keys()
        assert rival.summary
        assert rival.includes


def test_every_workload_is_compared_by_a_figure_that_there_is() -> None:
    for workload in WORKLOADS.values():
        assert hasattr(Figures(), workload.headline)
        assert workload.points
        assert workload.quick_points
