"""Options are the fields of a dataclass: which there are, how they are read, and what they default to."""

from __future__ import annotations

import argparse
from dataclasses import fields

import pytest

from sparseinfer._arguments import arguments
from sparseinfer.bench.settings import Settings
from sparseinfer.bench.whole_model import ModelSettings
from sparseinfer.cli._options import add_options, filled
from sparseinfer.demo import experiment
from sparseinfer.hub.job import Job


def parsed(settings: type, *argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_options(parser, settings)
    return parser.parse_args(argv)


@pytest.mark.parametrize(
    ("settings", "left_out"),
    [(Settings, set()), (experiment.Settings, {"recovery_steps"}), (Job, set())],
    ids=["bench", "demo", "prune"],
)
def test_every_setting_is_an_option(settings: type, left_out: set[str]) -> None:
    assert arguments(settings).keys() == {field.name for field in fields(settings)} - left_out


@pytest.mark.parametrize("settings", [Settings, ModelSettings, experiment.Settings])
def test_defaults_are_those_of_the_dataclass(settings: type) -> None:
    assert filled(settings, parsed(settings)) == settings()


def test_given_values_replace_defaults() -> None:
    given = parsed(Settings, "--shape", "8x4", "--shape", "16×32", "--tokens", "1", "3", "--block", "4x4")
    settings = filled(Settings, given)
    assert settings.shapes == [(8, 4), (16, 32)]
    assert settings.tokens == [1, 3]
    assert settings.block == (4, 4)
    assert settings.sparsities == Settings().sparsities


def test_help_tells_every_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed(Settings, "--help")
    text = " ".join(capsys.readouterr().out.split())
    for default in ("768x768 3072x768 768x3072", "0.5 0.7 0.8 0.9 0.95", "1 16 128", "f32", "warm"):
        assert f"default: {default}" in text
