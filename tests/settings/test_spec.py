"""`NAME[:key=value,...]`: parsing, reading values, and what is said when they are wrong."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from settings.errors import InputError, unknown
from settings.spec import Spec, construct, parse_spec


@pytest.mark.parametrize(
    ("text", "name", "options"),
    [
        ("sgd", "sgd", {}),
        ("sgd:lr=0.02", "sgd", {"lr": "0.02"}),
        (" adam:lr=1e-3, beta_1 = 0.9 ", "adam", {"lr": "1e-3", "beta_1": "0.9"}),
        ("my_module:TASK", "my_module:TASK", {}),
        ("a.b:make:width=64,deep=true", "a.b:make", {"width": "64", "deep": "true"}),
        ("a:make:path=/x:y/z", "a:make", {"path": "/x:y/z"}),
        ("a:make:text=", "a:make", {"text": ""}),
        ("a:make:formula=x=1", "a:make", {"formula": "x=1"}),
    ],
)
def test_parse(text: str, name: str, options: dict[str, str]) -> None:
    assert parse_spec(text) == Spec(name, options)


@pytest.mark.parametrize("text", ["sgd:lr=1,momentum", "sgd:lr=1,,", "sgd:=1"])
def test_unreadable_options(text: str) -> None:
    with pytest.raises(InputError, match="write NAME:key=value,key=value"):
        parse_spec(text)


def test_an_option_given_twice() -> None:
    with pytest.raises(InputError, match="'sgd:lr=1,lr=2' gives lr twice"):
        parse_spec("sgd:lr=1,lr=2")


@pytest.mark.parametrize("text", ["", "  ", ":lr=1"])
def test_no_name(text: str) -> None:
    with pytest.raises(InputError, match="the name is missing"):
        parse_spec(text)


def everything(
    count: int,
    rate: float = 0.5,
    on: bool = False,
    word: str = "",
    pair: tuple[float, float] = (0.0, 0.0),
    maybe: bool | None = None,
) -> dict[str, Any]:
    if count < 0:
        raise ValueError("count must not be negative")
    return locals()


FACTORIES: dict[str, Callable[..., Any]] = {"everything": everything, "other": dict}


def test_values_have_their_types() -> None:
    made = construct("everything:count=3", FACTORIES, "thing")
    assert made == everything(3)
    text = "everything:count=-0,rate=1e-2,on=Yes,word=a b,pair=0.9/0.99,maybe=no"
    made = construct(text, FACTORIES, "thing")
    assert made == everything(0, 0.01, True, "a b", (0.9, 0.99), False)
    assert [type(value) for value in made.values()] == [int, float, bool, str, tuple, bool]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nothing", "^unknown thing 'nothing': choose from everything, other, module:attribute$"),
        ("everything", "^thing everything needs count: everything:count=...$"),
        ("everything:count=3,size=1", "^unknown option of thing everything 'size': .*count, rate"),
        ("everything:count=3.5", "^everything:count must be a whole number, not '3.5'$"),
        ("everything:count=3,rate=x", "^everything:rate must be a number, not 'x'$"),
        ("everything:count=3,rate=nan", "^everything:rate must be a number, not 'nan'$"),
        ("everything:count=3,on=2", "^everything:on must be true or false, not '2'$"),
        ("everything:count=3,maybe=2", "^everything:maybe must be true or false, not '2'$"),
        ("everything:count=-1", "^thing everything: count must not be negative$"),
        ("everything:count", "count.*write NAME:key=value"),
        (
            "no_such_module:X",
            "^unknown thing 'no_such_module:X': there is no module no_such_module",
        ),
        ("settings.no_such:X", "there is no module settings.no_such"),
        ("settings.spec:Spek", "^unknown attribute of settings.spec 'Spek': .*Spec"),
        ("thing.py:X", "^unknown thing 'thing.py:X': write thing:X, a module's name has no .py$"),
        (":X", "^unknown thing ':X'"),
        (".spec:X", "^unknown thing '.spec:X'"),
    ],
)
def test_mistakes(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        construct(text, FACTORIES, "thing")


def test_import_of_object_and_factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = (
        "import math\nfrom pathlib import Path\nTHING = 5\n"
        "def double(base: int, times: int = 2) -> int:\n    return base * times\n"
    )
    (tmp_path / "things_of_mine.py").write_text(source)
    (tmp_path / "broken_of_mine.py").write_text("import no_such_module_at_all\n")
    monkeypatch.chdir(tmp_path)
    assert construct("things_of_mine:THING", {}, "thing") == 5
    wrong = "from settings.errors import InputError\nraise InputError('a mistake')"
    (tmp_path / "wrong_of_mine.py").write_text(wrong)
    with pytest.raises(InputError, match=r"^a mistake$"):
        construct("wrong_of_mine:THING", {}, "thing")
    assert construct("things_of_mine:double:base=4", {}, "thing") == 8
    assert construct("things_of_mine:double:times=3", {}, "thing", 7) == 21
    with pytest.raises(InputError, match="things_of_mine:THING takes no options"):
        construct("things_of_mine:THING:size=1", {}, "thing")
    with pytest.raises(InputError, match=r"'THONG': choose from THING, double$"):
        construct("things_of_mine:THONG", {}, "thing")
    # What a user's own module lacks is not blamed on the spec: its file and line are named.
    said = r"cannot import broken_of_mine: .*no_such_module_at_all.*\(broken_of_mine\.py, line 1\)"
    with pytest.raises(InputError, match=said):
        construct("broken_of_mine:THING", {}, "thing")


def test_nearest_names_are_suggested() -> None:
    many = [f"CLIENT_{index}" for index in range(100)] + ["HAMLET_OPHELIA"]
    assert "the nearest are HAMLET_OPHELIA" in str(unknown("client id", "HAMLET_OFELIA", many))
    assert "HAMLET_OPHELIA" in str(unknown("client id", "ophelia", many))
    said = str(unknown("client id", "???", many))
    assert "there are 101, CLIENT_0 and CLIENT_1 among them" in said
    assert str(unknown("client id", "x", [])).endswith("there are none")
