import io

from flows.machine.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(stream: io.StringIO, times: list[float]) -> str:
    """What is shown when the steps 0, 1, ... of a piece of work with len(times) - 1 steps happen at these times."""
    clock = iter(times)
    progress = Progress(stream, lambda: next(clock))
    progress.name = "sample@i01"
    for done in range(len(times)):
        progress("sampling", done, len(times) - 1)
    return stream.getvalue()


def test_short_work_is_not_shown() -> None:
    assert shown(io.StringIO(), [0, 1, 2, 3, 4]) == ""
    assert shown(Terminal(), [0, 1, 2, 3, 4]) == ""


def test_a_log_gets_a_line_every_ten_seconds() -> None:
    lines = shown(io.StringIO(), [0, 6, 11, 15, 22, 30]).splitlines()
    assert lines == [
        "sample@i01: sampling 2 of 5 (40 %), 11 s, about 16 s left",
        "sample@i01: sampling 4 of 5 (80 %), 22 s, about 6 s left",
    ]


def test_a_terminal_gets_a_bar() -> None:
    text = shown(Terminal(), [0, 6, 7, 8])
    assert "sample@i01: sampling" in text
