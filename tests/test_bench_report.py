"""Tables, pages and pictures of results."""

import json
import random

import pytest
from matplotlib.transforms import Bbox
from small_results import result_of

from rdpnet_timm.bench import docs, plots, report
from rdpnet_timm.bench.plots import pareto_front
from rdpnet_timm.bench.tables import DEPLOY


def test_markdown_puts_the_papers_figures_and_factors_beside_ours():
    text = report.markdown(result_of(([20.0, 21.0, 22.0], [10.0, 10.0, 10.0])))
    assert "| MobileNetV2-0.5x | 1.00 | 100 | 65.03 | 85.72 | 38.52 (2.07x) | 21.00 (2.10x) |" in text
    assert "| **RDPNet-0.75x** | 2.00 | 200 | 67.23 | 88.93 | 18.58 | 10.00 |" in text
    assert "2026-01-02, A CPU, 2 cores" in text and "torch 2.0" in text and "`rdpnet bench table5`" in text
    assert "other programs used up to 50 % of the machine before or after all runs" in text
    assert "interrupted" not in text and "too noisy" not in text


def test_markdown_says_where_two_contestants_cannot_be_ranked():
    text = report.markdown(result_of(([9.0, 12.0, 10.0], [10.0, 10.0, 10.0])))
    assert "10.00 (1.00x, tie)" in text
    assert "too noisy to rank (tie): " in text


def test_few_rounds_have_factors_and_no_verdict():
    result = result_of(([20.0], [10.0]))
    for times in result["runs"][0]["measurement"]["samples"].values():
        del times[2:]
    (row,) = (row for row in report.rows(result) if row["network"] == "MobileNetV2-0.5x")
    assert (row["ratio"], row["ratio_low"], row["ratio_high"], row["verdict"]) == (2, None, None, "tie")
    text = report.markdown(result)
    assert "20.00 (2.00x, tie)" in text and "none for want of 6 rounds" in text and "too noisy" not in text


def test_a_sweep_compares_curves_at_the_same_place():
    result = result_of(([20.0, 20.0], [10.0, 10.0]), table="scaling")
    facts = list(result["runs"][0]["contestants"].values())
    facts[0].update(x=0.5, series="b"), facts[1].update(x=0.5, series="a")
    result["runs"][0]["contestants"] = dict(reversed(result["runs"][0]["contestants"].items()))
    text = report.markdown(result)
    assert "|  | eager, 1 thread: a | eager, 1 thread: b |" in text and "| 0.5 | 10.00 | 20.00 (2.00x) |" in text


def test_an_unfinished_result_says_so():
    assert "interrupted" in report.markdown(result_of(([1.0], [1.0]), complete=False))


def test_a_page_for_each_result_and_its_picture(tmp_path):
    results, pages = tmp_path / "results", tmp_path / "pages"
    results.mkdir()
    with pytest.raises(FileNotFoundError, match="expected results of 'rdpnet bench'"):
        docs.update(results, pages)
    assert not pages.exists()
    report.write(result_of(([20.0, 21.0, 22.0], [10.0, 10.0, 10.0])), results)
    (results / "speed.json").write_text("{}")  # of int8-speed, which is no table
    there = set(results.iterdir())
    assert docs.update(results, pages) == [pages / "table5.md"]
    assert set(results.iterdir()) == there
    text = (pages / "table5.md").read_text()
    assert text.startswith("# Title\n\n![Title](table5.png)\n\n2026-01-02, A CPU")
    assert "21.00 (2.10x)" in text and (pages / "table5.png").stat().st_size > 1000
    before = (results / "table5.md").read_bytes()
    with pytest.raises(ValueError, match=r"holds the results, whose own TABLE\.md have every figure"):
        docs.update(results, tmp_path / "pages" / ".." / "results")
    assert (results / "table5.md").read_bytes() == before
    (results / "scaling.json").write_text('{"table": "sca')
    with pytest.raises(ValueError, match=r"scaling\.json' is not a whole result"):
        docs.update(results, pages)
    for broken in ("{}", "[]", '{"title": "Scaling", "date": "2026-01-02"}'):
        (results / "scaling.json").write_text(broken)
        with pytest.raises(ValueError, match=r"scaling\.json' is not a whole result of 'rdpnet bench' \("):
            docs.update(results, pages)


@pytest.mark.parametrize("table", ["table5", "figure2"])  # latency against accuracy, and a sweep
def test_an_older_result_of_networks_that_are_no_longer_in_the_table_has_a_page_and_no_picture(table, tmp_path):
    text = json.dumps(result_of(([20.0, 21.0, 22.0], [10.0, 10.0, 10.0]), table=table))
    (tmp_path / f"{table}.json").write_text(text.replace("MobileNetV2", "Older").replace("RDPNet", "OldPNet"))
    assert docs.update(tmp_path, tmp_path / "pages") == [tmp_path / "pages" / f"{table}.md"]
    page = (tmp_path / "pages" / f"{table}.md").read_text()
    assert "Older-0.5x" in page and "21.00 (2.10x)" in page and "![" not in page
    assert not list((tmp_path / "pages").glob("*.png"))


def by_precision(int8_snr):
    """A result of one interleaved run: float32 10 and 8 ms, INT8 4 and 5 ms, the INT8 outputs as noisy as said."""
    result = result_of(([10.0, 10.0], [8.0, 8.0]))
    (run,) = result["runs"]
    quantised = json.loads(json.dumps(run))
    run.update(backend="onnxruntime", precision="float32")
    quantised.update(backend="openvino", precision="int8")
    for contestant, times, snr in zip(quantised["contestants"].values(), ([4.0] * 12, [5.0] * 12), int8_snr):
        contestant["snr_db"] = snr
        quantised["measurement"]["samples"][f"{contestant['name']}, {DEPLOY}"] = times
    result["runs"].append(quantised)
    return result


def test_the_best_precision_is_named():
    text = report.markdown(by_precision((30.0, 30.0)))
    assert "| onnxruntime | openvino int8 | best |" in text
    assert "| 10.00 (1.25x) | 4.00 (0.80x) | **4.00** (openvino int8) |" in text
    assert "| 8.00 | 5.00 | **5.00** (openvino int8) |" in text


def test_a_network_that_quantises_wrongly_is_marked_and_its_time_is_not_the_best():
    text = report.markdown(by_precision((-2.0, 5.0)))
    assert "4.00 (0.80x), **wrong: -2 dB** | **10.00** (onnxruntime float32) |" in text
    assert "5.00, *5 dB* | **5.00** (openvino int8) |" in text  # noisy, and said so
    drawn = plots._best_by_precision(list(report.rows(by_precision((-2.0, 5.0)))))
    best = {row["network"]: row["min_ms"] for row in drawn if row["panel"] == "each in its best precision"}
    assert best == {"MobileNetV2-0.5x": 10.0, "RDPNet-0.75x": 5.0}


def test_the_best_is_one_of_the_runtimes_which_alone_took_turns():
    result = by_precision((30.0, 30.0))
    eager = json.loads(json.dumps({**result["runs"][0], "backend": "eager"}))
    for times in eager["measurement"]["samples"].values():
        times[:] = [1.0] * len(times)
    result["runs"].insert(0, eager)
    assert "| **4.00** (openvino int8) |" in report.markdown(result)
    drawn = plots._best_by_precision(list(report.rows(result)))
    assert {row["backend"] for row in drawn} == {"onnxruntime", "openvino"}
    result["runs"] = [eager]
    assert {row["backend"] for row in plots._best_by_precision(list(report.rows(result)))} == {"eager"}


def test_the_quantiser_that_is_named_is_the_one_that_the_runtime_has():
    result = by_precision((30.0, 30.0))
    assert "The INT8 quantiser is ONNX Runtime's (7 bits" in report.markdown(result)
    result["runs"][1]["backend"] = "executorch"
    assert "The INT8 quantiser is executorch's own, the same" in report.markdown(result)
    result["runs"][1]["precision"] = "bfloat16"
    assert "*best* is" in report.markdown(result) and "quantiser" not in report.markdown(result)
    for snr, is_explained in ((90.0, False), (-3.0, True)):
        result["runs"] = by_precision((snr, 30.0))["runs"][1:]  # INT8 alone
        text = report.markdown(result)
        assert ("A figure in dB" in text) is is_explained and "*best*" not in text and "INT8 quantiser is" in text


def test_throughput_counts_images_not_calls():
    result = by_precision((30.0, 30.0))
    result["table"] = "throughput"
    for one in result["runs"]:
        for contestant in one["contestants"].values():
            contestant["extra"] = {"batch": 16}
    text = report.markdown(result)
    assert "| 1600 (1.25x) | 4000 (0.80x) | **4000** (openvino int8) |" in text  # 16 images in 10 ms, and in 4 ms


def test_the_pareto_front_holds_what_nothing_beats():
    generator = random.Random(0)
    points = {str(index): (generator.randint(1, 20), generator.randint(1, 20)) for index in range(60)}
    front = pareto_front(points)
    for name, (latency, accuracy) in points.items():
        beaten = any(
            a <= latency and b >= accuracy and (a, b) != (latency, accuracy) for a, b in map(points.get, points)
        )
        assert (points[name] in [points[each] for each in front]) is not beaten


def test_names_of_crowded_points_do_not_touch():
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    spread = random.Random(0)
    points = {f"Some network {n}": (5 + spread.random(), 72 + 3 * spread.random()) for n in range(8)}
    points |= {f"RDPNet-{n}": (10 * spread.random(), 66 + 12 * spread.random()) for n in range(6)}
    figure = Figure(figsize=(5.2, 5.2))
    FigureCanvasAgg(figure)
    axis = figure.add_subplot()
    axis.scatter(*zip(*points.values()))
    axis.margins(0.15)
    figure.canvas.draw()
    plots._label(axis, points)
    figure.canvas.draw()
    boxes = [Text.get_window_extent(text) for text in axis.texts]  # without the lines to the points
    assert len(boxes) == len(points)
    assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if Bbox.intersection(a, b)]
