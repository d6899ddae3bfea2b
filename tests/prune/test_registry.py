"""Names of methods, budgets and patterns: what says one is offered by the command line, `hub` and `bench`."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparseinfer.cli import main
from sparseinfer.hub.job import Job
from sparseinfer.prune import NM, Block, Budget, Criterion, Magnitude, Pattern, SparseMethod, named, registry


@pytest.fixture
def restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Classes that a test defines are forgotten after it."""
    monkeypatch.setattr(named, "_named", list(named._named))


def test_all_that_have_a_name_are_offered() -> None:
    assert set(registry.methods()) >= {"magnitude", "random", "wanda", "hessian", "sparsegpt", "admm"}
    assert list(registry.budgets()) == ["uniform", "erk", "owl", "sensitivity"]
    assert set(registry.patterns()) == {"unstructured", "RxC", "N:M", "row", "column"}
    assert all(method.name == name for name, method in registry.methods().items())
    assert registry.budgets()["uniform"](0.5) == 0.5


@pytest.mark.parametrize("text", ["unstructured", "row", "column", "4x16", "2:4"])
def test_a_pattern_of_a_text(text: str) -> None:
    pattern = registry.pattern(text)
    assert isinstance(pattern, Pattern)
    numbers = {"4x16": Block(4, 16), "2:4": NM(2, 4)}
    assert pattern == numbers.get(text, pattern)


def test_a_new_class_with_a_name_is_offered_at_once(restored: None, tmp_path: Path) -> None:
    class Smallest(Magnitude):
        name = "smallest"

    class Half(Budget):
        name = "half"

    class Corner(Pattern):
        name = "corner:K"

    assert registry.methods()["smallest"] is Smallest
    assert registry.budgets()["half"] is Half
    assert registry.patterns()["corner:K"] is Corner
    job = Job(tmp_path, tmp_path, method="smallest", sparsity=0.5)
    assert isinstance(job.pruning_method(), Smallest)


def test_a_subclass_without_a_name_is_not_offered(restored: None) -> None:
    class Mine(Magnitude):
        pass

    assert Mine not in registry.methods().values()
    assert registry.methods()["magnitude"] is Magnitude
    assert not {SparseMethod, Criterion} & set(registry.methods().values())


def test_the_command_line_names_them_all(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["prune", "--help"])
    # Where lines are cut depends on the names and on the terminal.
    shown = " ".join(capsys.readouterr().out.split())
    for name in (*registry.methods(), *registry.budgets(), *registry.patterns(), *registry.SCOPES):
        assert name in shown
    assert f"default: {Job.method}" in shown


@pytest.mark.parametrize("wrong", [{"samples": 0}, {"length": -1}, {"budget": "all"}, {"method": "wand"}])
def test_a_job_checks_itself(wrong: dict[str, object], tmp_path: Path) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=f"^{name}: expected "):
        Job(tmp_path, tmp_path, **{"sparsity": 0.5, **wrong})
