from pathlib import Path

import pytest
import yaml

from flows.run.declared import declared, graph, names
from tasks.core.errors import BadInput, UnknownName

GRAPH = {
    "stages": {
        "make": {
            "cmd": "x",
            "deps": ["families/${make.family}.py"],
            "params": ["make"],
            "outs": ["data/a", {"data/b": {"cache": False}}],
        },
        "use": {
            "foreach": "${rows}",
            "do": {
                "cmd": "x ${key}",
                "deps": ["data/${item.previous}/c"],
                "params": ["rows.${key}.use"],
                "outs": ["data/${key}/c"],
                "metrics": [{"data/${key}/m.json": {"cache": False}}],
            },
        },
    }
}
PARAMS = {"make": {"family": "adding"}, "rows": {"i01": {"previous": "i00", "use": {"n": 3}}}}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump(GRAPH, sort_keys=False))
    return tmp_path


def test_templates_are_filled_in(root: Path) -> None:
    assert names(graph(root), PARAMS) == ["make", "use@i01"]
    make, use = declared(graph(root), PARAMS, "make", None), declared(graph(root), PARAMS, "use", "i01")
    assert make.deps == ("families/adding.py",)
    assert make.outs == ("data/a", "data/b")
    assert use.deps == ("data/i00/c",)
    assert use.outs == ("data/i01/c", "data/i01/m.json")
    assert use.params == {"rows.i01.use": {"n": 3}}


@pytest.mark.parametrize(
    ("stage", "key", "said"),
    [
        ("mkae", None, "unknown stage 'mkae'; did you mean 'make'"),
        ("use", "i10", "unknown iteration 'i10'; did you mean 'i01'"),
        ("use", None, "which iteration"),
        ("make", "i01", "takes no iteration"),
    ],
)
def test_unknown_stages_are_refused(root: Path, stage: str, key: str | None, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        declared(graph(root), PARAMS, stage, key)


def test_a_missing_value_is_named(root: Path) -> None:
    with pytest.raises(BadInput, match=r"needs 'make.family'"):
        declared(graph(root), {"make": {}, "rows": {}}, "make", None)
    with pytest.raises(UnknownName):
        declared(graph(root), {"make": {}, "rows": {}}, "use", "i01")
