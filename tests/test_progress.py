import time

from flowmlx.experiment import progress


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
    with progress.bar(total=100) as bar:
        time.sleep(0.5)  # to compile
        progress.begin(bar)
        for _ in range(10):
            time.sleep(0.002)
            bar.update()
        assert bar.format_dict["elapsed"] < 0.3
        assert bar.format_dict["n"] == 10
