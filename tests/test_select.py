"""Which modules `filter_fn`, `targets` and `ignore` select."""

from __future__ import annotations

import re

import pytest
from torch import nn
from torch.nn.utils import parametrize

from sparseinfer.select import matches, select_modules

LINEAR = (nn.Linear,)


class Scaled(nn.Linear):
    pass


def model() -> nn.Module:
    return nn.ModuleDict(
        {
            "encoder": nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)),
            "scaled": Scaled(4, 4),
            "conv": nn.Conv2d(1, 1, 1),
            "head": nn.Linear(4, 2),
        }
    )


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({}, ["encoder.0", "encoder.2", "scaled", "head"]),
        ({"targets": ["head"]}, ["head"]),
        ({"targets": "head"}, ["head"]),
        ({"targets": ("head", "encoder.2")}, ["encoder.2", "head"]),
        ({"targets": ["Scaled"]}, ["scaled"]),
        ({"targets": ["Linear"]}, ["encoder.0", "encoder.2", "scaled", "head"]),
        ({"targets": [r"re:encoder\.\d"]}, ["encoder.0", "encoder.2"]),
        ({"targets": ["re:.*0$", "Scaled"]}, ["encoder.0", "scaled"]),
        ({"ignore": ["head"]}, ["encoder.0", "encoder.2", "scaled"]),
        ({"ignore": ["Scaled", r"re:enc"]}, ["head"]),
        ({"ignore": ["no such module"]}, ["encoder.0", "encoder.2", "scaled", "head"]),
        ({"targets": ["Linear"], "ignore": ["re:.*"], "filter_fn": None}, []),
        ({"filter_fn": lambda module, fqn: module.out_features == 2}, ["head"]),
        ({"filter_fn": lambda module, fqn: "encoder" in fqn, "ignore": ["encoder.0"]}, ["encoder.2"]),
    ],
)
def test_selection(how, expected):
    whole = model()
    if not expected:
        with pytest.warns(UserWarning, match="expected at least one Linear to be selected, got none of 4"):
            assert select_modules(whole, LINEAR, **how) == {}
        return
    selected = select_modules(whole, LINEAR, **how)
    assert list(selected) == expected
    assert all(module is whole.get_submodule(fqn) for fqn, module in selected.items())


def test_regex_is_anchored_at_the_start_and_names_are_not_prefixes():
    with pytest.warns(UserWarning, match="got none of 4"):
        assert select_modules(model(), LINEAR, targets=["encoder", "re:0"]) == {}


def test_the_model_itself():
    linear = nn.Linear(2, 2)
    assert select_modules(linear, LINEAR) == {"": linear}


def test_other_types():
    whole = model()
    assert list(select_modules(whole, (nn.Linear, nn.Conv2d), targets=["conv", "head"])) == ["conv", "head"]


def test_parametrized_modules_keep_their_class_name():
    whole = model()
    parametrize.register_parametrization(whole["head"], "weight", nn.Identity())
    assert list(select_modules(whole, LINEAR, targets=["Linear"], ignore=["Scaled"]))[-1] == "head"


def test_a_shared_module_is_listed_once_and_answers_to_each_name():
    shared = nn.Linear(2, 2)
    whole = nn.ModuleDict({"first": shared, "second": shared, "other": nn.Linear(2, 2)})
    assert list(select_modules(whole, LINEAR)) == ["first", "other"]
    assert list(select_modules(whole, LINEAR, targets=["second"])) == ["first"]
    assert list(select_modules(whole, LINEAR, ignore=["second"])) == ["other"]


def test_a_target_without_a_match_is_told():
    message = "targets: expected each to match a Linear, got 'haed', 'conv' without a match"
    with pytest.warns(UserWarning, match=re.escape(message)):
        assert list(select_modules(model(), LINEAR, targets=["haed", "conv", "head"])) == ["head"]


def test_a_model_without_candidates_is_told():
    with pytest.warns(
        UserWarning, match="filter: expected at least one Linear to be selected, got none of 0"
    ):
        assert select_modules(nn.ReLU(), LINEAR) == {}


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ({"model": "bert"}, TypeError, "model: expected a torch.nn.Module, got str"),
        (
            {"filter_fn": "head"},
            TypeError,
            "filter_fn: expected a callable (module, fqn) -> bool, got str",
        ),
        ({"targets": [3]}, TypeError, "targets: expected a list of strings, got [3]"),
        ({"targets": 3}, TypeError, "targets: expected a list of strings, got 3"),
        ({"ignore": [None]}, TypeError, "ignore: expected a list of strings, got [None]"),
        (
            {"ignore": ["re:*"]},
            ValueError,
            "ignore: expected a regular expression after 're:', got 're:*' (nothing to repeat at position 0)",
        ),
    ],
)
def test_bad_arguments(how, error, message):
    with pytest.raises(error) as raised:
        select_modules(**{"model": model(), "types": LINEAR} | how)
    assert str(raised.value) == message


def test_whether_patterns_match_one_module():
    layer = nn.Linear(2, 2)
    names = ["block.qkv", "block.query"]
    assert matches(layer, names, "ignore", ["block.query"])
    assert matches(layer, names, "ignore", "re:.*qkv$")
    assert matches(layer, names, "targets", "Linear")
    assert not matches(layer, names, "ignore", ["query", "Conv2d"])
    assert not matches(layer, names, "ignore", None)
    with pytest.raises(ValueError, match="targets: expected a regular expression"):
        matches(layer, names, "targets", "re:(")
