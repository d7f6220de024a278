"""Bars draw on a terminal only, and lines written meanwhile stay whole."""

from __future__ import annotations

import io

from megatron_hyena.observe.progress import progress, write_line


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_bar_draws_on_a_terminal_and_lines_do_not_tear(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr("sys.stdout", terminal)
    with progress(range(2500), description="write store", unit="b") as bar:
        for item in bar:
            if item == 1000:
                write_line("step 1/2  loss 1.0")
    drawn = terminal.getvalue()
    assert "write store: 100%" in drawn and "2500/2500" in drawn
    line_starts = drawn.split("step 1/2  loss 1.0\n")[0]
    assert line_starts.endswith("\r")  # the bar was taken down before the line


def test_no_bar_without_a_terminal_or_when_disabled(monkeypatch):
    pipe, terminal = io.StringIO(), Terminal()
    monkeypatch.setattr("sys.stderr", pipe)
    assert list(progress("ab", description="x")) == ["a", "b"]
    monkeypatch.setattr("sys.stderr", terminal)
    assert list(progress("ab", description="x", enabled=False)) == ["a", "b"]
    assert pipe.getvalue() == terminal.getvalue() == ""
