"""The pages of the documentation: their examples run, their commands exist, their links lead somewhere."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from doc_models import FILLED

from sparseinfer.cli import parser

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Pages whose examples need a server, or build on commands.
ELSEWHERE = {
    "tutorial": "test_tutorial.py runs it",
    "engines": "serve_engines/engine_ray.py runs it, where Ray is",
    "serving": "serve/test_serve_http.py runs it, where a server is",
}

Names = dict[str, Any]


def blocks(page: Path, language: str) -> Iterator[tuple[int, str]]:
    """The code blocks of a page, each with the number of lines before it."""
    text = page.read_text(encoding="utf-8")
    for match in re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield text[: match.start(1)].count("\n"), match[1]


def run(page: Path, names: Names) -> Names:
    """Runs the Python examples of a page, one after the other; errors tell the page's lines."""
    for line, code in blocks(page, "python"):
        exec(compile("\n" * line + code, str(page), "exec"), names)
    return names


def sparsity(model: torch.nn.Module) -> float:
    weights = [parameter for parameter in model.parameters() if parameter.ndim == 2]
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


def _pruning(found: Names, told: str) -> None:
    assert "sparsity 0.5000" in told
    assert sparsity(found["dense"]) == 0
    assert sparsity(found["model"]) == 0.5
    # By an exact count over all layers.
    assert found["pruner"].done
    assert sparsity(found["student"]) == pytest.approx(0.9, abs=1e-4)
    assert sparsity(found["recovered"]) == pytest.approx(0.8, abs=1e-4)
    assert isinstance(found["fast"], torch.nn.Sequential)


def _quantization(found: Names, told: str) -> None:
    assert "made zero" in told
    assert sparsity(found["model"]) >= sparsity(found["pruned"]) == 0.5
    assert list(found["report"].unprepared) == ["3"]
    assert 0 < found["error"].abs().max() < 0.1


def _converting(found: Names, told: str) -> None:
    assert "results differ by" in told
    with torch.no_grad():
        expected = found["model"](found["x"])
        torch.testing.assert_close(found["fast"](found["x"]), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found["y"], expected[:1], rtol=1e-4, atol=1e-5)


def _structured(found: Names, told: str) -> None:
    assert "0.up.weight: 256 -> 128 neurons" in told
    assert found["report"].groups[0].kind == "blocks"
    assert found["pruner"].done
    # 30 % of 256, to the next multiple of 16.
    assert found["student"][0].up.out_features == 176
    assert found["history"].steps == 20


def _recovery(found: Names, told: str) -> None:
    errors = found["errors"]
    assert list(errors) == ["magnitude", "admm", "bias corrected", "trained"]
    assert errors["trained"] < errors["admm"] < errors["magnitude"]


def _language_models(found: Names, told: str) -> None:
    assert sparsity(found["model"].model.layers) == pytest.approx(0.5, abs=1e-3)


def _files(found: Names, told: str) -> None:
    assert Path("model.safetensors").is_file()
    assert Path("folder/config.json").is_file()


def _report(found: Names, told: str) -> None:
    assert "0.905" in Path("report.html").read_text(encoding="utf-8")


# What the examples of a page leave behind is right, where that is more than that they ran.
CHECKS: dict[str, Callable[[Names, str], None]] = {
    "pruning": _pruning,
    "quantization": _quantization,
    "converting": _converting,
    "structured": _structured,
    "recovery": _recovery,
    "language_models": _language_models,
    "files": _files,
    "report": _report,
}


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT reads it
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_examples_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if page.stem in ELSEWHERE:
        pytest.skip(ELSEWHERE[page.stem])
    if page.stem == "gpu" and not torch.cuda.is_available():
        pytest.skip("its example needs a GPU")
    monkeypatch.chdir(tmp_path)
    state = torch.get_rng_state()
    try:
        names = {"__name__": "examples", **FILLED.get(page.stem, dict)()}
        found = run(page, names)
    finally:
        torch.set_rng_state(state)
    CHECKS.get(page.stem, lambda found, told: None)(found, capsys.readouterr().out)


def commands(page: Path) -> Iterator[str]:
    for language in ("sh", "console"):
        for _, text in blocks(page, language):
            for line in text.replace("\\\n", " ").splitlines():
                command = re.split(r"#|\||\d?>", line.removeprefix("$ "))[0].strip()
                if command.startswith("sparseinfer ") and (language == "sh" or line.startswith("$ ")):
                    yield command.removesuffix("&").strip()


@pytest.mark.parametrize("page", [page for page in PAGES if list(commands(page))], ids=lambda page: page.stem)
def test_the_commands_exist(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in commands(page):
        arguments = [word for word in shlex.split(command)[1:] if word != "..."]
        try:
            options = parser().parse_args(arguments)
        except SystemExit:
            left_out = "..." in command and "required" in capsys.readouterr().err
            assert left_out, f"{page.name}: {command}"
        else:
            assert isinstance(options, argparse.Namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_to_files(page: Path) -> None:
    """Sphinx looks at links between pages; here are also those of the README, and to files elsewhere."""
    for target in re.findall(r"\]\((?!https?://|#)([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name}: {target}"
