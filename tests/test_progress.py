import time

from flowmlx.experiment import progress
from flowmlx.experiment.options import Train


def test_in_a_file_states_are_lines_and_few(capsys):
    with progress.bar(total=500, desc="training", unit="step", postfix="compiling") as bar:
        for k in range(500):
            bar.set_postfix(loss=k, refresh=False)
            bar.update()
    text = capsys.readouterr().err
    first, last = text.splitlines()
    assert "\r" not in text
    assert first.startswith("training:   0%")
    assert "compiling" in first
    assert last.startswith("training: 100%")
    assert "loss=499" in last


def test_in_a_file_there_is_a_line_now_and_then(capsys, monkeypatch):
    monkeypatch.setattr(progress, "FILE", 0.05)
    with progress.bar(total=40) as bar:
        for _ in range(40):
            time.sleep(0.01)
            bar.update()
    assert 3 < len(capsys.readouterr().err.splitlines()) < 15


def test_a_rate_is_of_the_time_since_the_beginning():
    with progress.TrainingBar(Train(), 90) as bar:
        time.sleep(0.5)  # to compile
        for step in range(10):
            bar.step(step)
            time.sleep(0.002)
        assert bar._bar.format_dict["elapsed"] < 0.3
        assert bar._bar.format_dict["n"] == 100
    timings = bar.timings()
    assert timings["trained_steps"] == 10
    assert timings["compile_seconds"] > 0.4 > timings["training_seconds"] > 0.015
