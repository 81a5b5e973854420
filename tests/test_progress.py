"""Signs of life on a terminal, silence elsewhere."""

import io
import sys

from rdpnet_timm.progress import counted, status


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_sees_what_is_done_and_a_clean_line_at_the_end(monkeypatch):
    monkeypatch.setattr("rdpnet_timm.progress._PERIOD", 0.0)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    items = counted([1, 2, 3], "pictures")
    monkeypatch.setattr(sys, "stderr", io.StringIO())  # what reads them may have redirected it
    assert list(items) == [1, 2, 3]
    assert "pictures: 2 of 3, " in terminal.getvalue() and terminal.getvalue().endswith("\r\x1b[K")
    monkeypatch.setattr(sys, "stderr", terminal)
    with status() as show:
        show("writing")
    assert terminal.getvalue().endswith("writing\r\x1b[K")


def test_a_file_sees_nothing(monkeypatch):
    monkeypatch.setattr("rdpnet_timm.progress._PERIOD", 0.0)
    monkeypatch.setattr(sys, "stderr", file := io.StringIO())
    assert list(counted([1, 2], "pictures")) == [1, 2]
    with status() as show:
        show("writing")
    assert file.getvalue() == ""


def test_closed_error_output_sees_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    assert list(counted([1, 2], "pictures")) == [1, 2]
    with status() as show:
        show("writing")
