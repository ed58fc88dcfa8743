import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tasks.core.asking.log import RequestLog
from tasks.core.errors import StageFailed
from tests.support.paths import ROOT


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with closing(RequestLog(tmp_path / "log.sqlite")) as log:
        for number in range(2000):
            log.write(f"k{number}", f"reply {number} " + "ä" * 40)
    return tmp_path / "log.sqlite"


def replies(path: Path) -> dict[str, str]:
    with closing(RequestLog(path)) as log:
        return dict(log.read([f"k{number}" for number in range(3000)]))


def test_what_was_written_is_read(path):
    found = replies(path)
    assert len(found) == 2000
    assert found["k7"] == "reply 7 " + "ä" * 40
    with closing(RequestLog(path)) as log:
        assert log.missing(["k1", "new", "k2", "other"]) == ["new", "other"]


def test_the_first_reply_stays(path):
    with closing(RequestLog(path)) as log:
        log.write("k7", "another")
    assert replies(path)["k7"].startswith("reply 7")


def test_a_damaged_reply_is_not_there(path):
    with closing(sqlite3.connect(path)) as database, database:
        (body,) = database.execute("SELECT body FROM replies WHERE key = 'k7'").fetchone()
        flipped = bytes([*body[:-3], body[-3] ^ 1, *body[-2:]])
        database.execute("UPDATE replies SET body = ? WHERE key = 'k7'", (flipped,))
        database.execute("UPDATE replies SET body = ? WHERE key = 'k8'", (body[:5],))
        database.execute("UPDATE replies SET body = 'text' WHERE key = 'k9'")
    assert replies(path).keys() == {f"k{number}" for number in range(2000)} - {"k7", "k8", "k9"}
    with closing(RequestLog(path)) as log:
        assert log.missing(["k7", "k8", "k9", "k10"]) == ["k7", "k8", "k9"]
        log.write("k7", "anew")
    assert replies(path)["k7"] == "anew"


@pytest.mark.parametrize("damage", ["garbage", "truncated", "pages"])
def test_a_file_that_is_damaged_is_set_aside(path, damage, caplog):
    whole = path.read_bytes()
    if damage == "garbage":
        path.write_bytes(b"this is no database" * 1000)
    elif damage == "truncated":
        path.write_bytes(whole[: len(whole) // 3])
    else:
        path.write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))
    assert replies(path).items() <= {f"k{n}": f"reply {n} " + "ä" * 40 for n in range(2000)}.items()
    with closing(RequestLog(path)) as log:
        log.write("new", "reply")
        assert dict(log.read(["new"])) == {"new": "reply"}
    assert "is damaged" in caplog.text
    assert list(path.parent.glob("*.damaged.*"))


def test_a_disk_that_is_full(tmp_path):
    code = (
        "import resource, signal, sys; from pathlib import Path; from tasks.core.asking.log import RequestLog\n"
        "log = RequestLog(Path(sys.argv[1])); signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "import random\n"
        "for number in range(10_000):\n"
        "    log.write(str(number), ''.join(random.choices('0123456789abcdef', k=500)))\n"
        "    print(number, flush=True)"
    )
    path = tmp_path / "log.sqlite"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "StageFailed" in done.stderr
    assert "MiB are free there: make room" in done.stderr
    with closing(RequestLog(path)) as log:
        written = done.stdout.split()
        assert 5 < len(written) < 10_000
        assert dict(log.read(written)).keys() == set(written)
        log.write("new", "reply")


def test_a_file_that_cannot_be_opened(tmp_path):
    (tmp_path / "log.sqlite").mkdir()
    with pytest.raises(StageFailed, match=r"log\.sqlite cannot be written or read"):
        RequestLog(tmp_path / "log.sqlite")
