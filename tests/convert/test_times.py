"""Where times come from: measured, remembered on disk or predicted. Layers are tiny; nothing is compared."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from convert_helpers import K, N, kinds, linear
from torch import nn

from sparseinfer import SparseLinear, _cache_files, convert, explain, ops
from sparseinfer._rates import rates
from sparseinfer.convert.candidates import base
from sparseinfer.convert.candidates.cost_model import Case
from sparseinfer.convert.timing import timer, verdicts
from sparseinfer.convert.timing.ranking import Ranking
from sparseinfer.convert.timing.times import Times
from sparseinfer.ops import Layout
from sparseinfer.ops.dense import PLAIN


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for isa in {ops.active_isa(), ops.isa_levels()[-1]}:
        rates(isa)  # known before, so that their file is not in this folder
    path = tmp_path / "not yet there"
    monkeypatch.setenv("SPARSEINFER_CACHE_DIR", str(path))
    return path


class Clock:
    """Stands in for the measurement: the token counts that were measured, and what it says."""

    def __init__(self) -> None:
        self.counts: list[int] = []
        self.is_sure = True
        self.sparse_us = [5.0]

    def __call__(self, case: Any, layouts: Any, tokens: int, *, cold: bool) -> Ranking:
        self.counts.append(tokens)
        sparse_us = self.sparse_us[min(len(self.counts), len(self.sparse_us)) - 1]
        times = dict.fromkeys(case.dense(tokens), 10.0) | {str(layout): sparse_us for layout in layouts}
        return Ranking(times, self.is_sure)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timer, "time_candidates", clock)
    return clock


@pytest.fixture
def predictions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sparse costs half from 16 tokens and sparsity 0.8 on, else as much as dense; float32 alone is known."""

    def dense(way: str, dtype: str, case: Case) -> float:
        return 8.0 if dtype == "float32" else math.inf

    def sparse(kernel: str, panel: int, unit: str, case: Case, isa: str) -> float:
        if "_f32" not in kernel:
            return math.inf
        return 4.0 if case.tokens >= 16 and case.sparsity >= 0.8 else 8.0

    monkeypatch.setattr(base, "predict_dense", dense)
    monkeypatch.setattr(base, "predict_sparse", sparse)


def sources(**options: Any) -> set[str]:
    options = {"tokens": (16,), **options}
    return {row.source for row in explain(convert(nn.Sequential(linear()), **options)).rows}


def stored(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


class TestRemembered:
    def test_the_second_time(self, folder: Path, clock: Clock) -> None:
        assert sources() == {"measured"}
        first = len(clock.counts)
        assert sources() == {"remembered"}
        assert len(clock.counts) == first
        content = json.loads(stored(folder).read_text())
        assert content["machine"]["isa"] == ops.active_isa()
        assert content["machine"]["threads"] == torch.get_num_threads()
        assert all(us > 0 for times in content["us"].values() for us in times.values())

    def test_decisions_are_the_same_then(self) -> None:
        first, second = (explain(convert(nn.Sequential(linear()), tokens=(1, 16))).rows for _ in range(2))
        assert [row.decision for row in first] == [row.decision for row in second]
        assert [row.dense_us for row in first] == [row.dense_us for row in second]

    @pytest.mark.parametrize(
        "options",
        [
            {"dense": lambda: linear(N, K + 8)},
            {"dense": lambda: linear(sparsity=0.6)},
            {"dense": lambda: linear().bfloat16()},
            {"tokens": (17,)},
            {"weights": torch.bfloat16},
        ],
        ids=["shape", "sparsity", "dtype", "tokens", "rounded"],
    )
    def test_not_for_other_layers(self, options: dict[str, Any]) -> None:
        assert sources() == {"measured"}
        dense = options.pop("dense", linear)()
        fast = convert(nn.Sequential(dense), **{"tokens": (16,), **options})
        assert explain(fast).rows[0].source == "measured"

    def test_not_for_other_candidates(self) -> None:
        times = {PLAIN: 1.0, "a": 2.0}
        verdicts.Verdicts().put(("key",), times)
        known = verdicts.Verdicts()
        assert known.get(("key",), (PLAIN, "a")) == times
        assert known.get(("key",), ("a",)) == {"a": 2.0}
        assert known.get(("key",), (PLAIN, "b")) is None
        assert known.get(("other",), (PLAIN,)) is None

    def test_two_writers_keep_each_others_times(self) -> None:
        first, second = verdicts.Verdicts(), verdicts.Verdicts()
        first.put(("a",), {PLAIN: 1.0})
        second.put(("b",), {PLAIN: 2.0})
        both = verdicts.Verdicts()
        assert both.get(("a",), (PLAIN,)) == {PLAIN: 1.0}
        assert both.get(("b",), (PLAIN,)) == {PLAIN: 2.0}


class TestMeasuredAnew:
    def test_with_other_cuda_kernels(
        self, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert sources() == {"measured"}
        built = tmp_path / "_cuda.so"
        built.write_bytes(b"new")
        monkeypatch.setattr(verdicts, "cuda_module", lambda: SimpleNamespace(__file__=str(built)))
        verdicts._machine.cache_clear()
        assert sources() == {"measured"}
        assert sources() == {"remembered"}
        verdicts._machine.cache_clear()

    def test_what_was_disturbed(self, clock: Clock, folder: Path) -> None:
        clock.is_sure = False
        assert sources() == sources() == {"measured"}
        assert not folder.exists()
        clock.is_sure = True
        assert sources() == {"measured"}
        assert sources() == {"remembered"}

    def test_alike_layers_are_not_measured_for_ever(
        self, clock: Clock, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The medians of three measurements that were not sure do for the others."""
        monkeypatch.setattr(timer, "_ABSURD", math.inf)
        clock.is_sure = False
        clock.sparse_us = [4.0, 16.0, 6.0, 99.0]
        rows = explain(convert(nn.Sequential(*(linear(K, K) for _ in range(5))), tokens=(16,))).rows
        assert clock.counts == [16] * 3
        assert [row.sparse_us[0] for row in rows] == [4.0, 16.0, 6.0, 6.0, 6.0]
        assert [row.decision for row in rows] == ["sparse", "dense", *["sparse"] * 3]
        assert not folder.exists()

    def test_a_time_that_no_kernel_can_have_is_measured_again(
        self, clock: Clock, folder: Path, predictions: None
    ) -> None:
        """A twentieth of the dense time where about as much was predicted: nothing of it is remembered."""
        clock.sparse_us = [0.5, 9.0]
        (row,) = explain(convert(nn.Sequential(linear()), tokens=(16,))).rows
        assert clock.counts == [16, 16]
        assert row.source == "measured"
        assert row.sparse_us == (9.0,)
        assert not folder.exists()

    def test_a_surprise_that_is_measured_twice_is_believed(self, clock: Clock, predictions: None) -> None:
        clock.sparse_us = [0.5, 0.51]
        assert sources() == {"measured"}
        assert sources() == {"remembered"}
        assert clock.counts == [16, 16]

    @pytest.mark.parametrize(
        "content",
        [
            "",
            "{",
            "[]",
            "3",
            "null",
            '{"us": 3}',
            '{"us": {"k": 3}}',
            '{"us": {"k": {"a": "x"}}}',
            "{}",
            "\x00",
        ],
    )
    def test_a_broken_file(self, folder: Path, content: str) -> None:
        assert sources() == {"measured"}
        stored(folder).write_text(content)
        assert sources() == {"measured"}
        assert sources() == {"remembered"}

    def test_bytes_that_are_no_text(self, folder: Path) -> None:
        sources()
        stored(folder).write_bytes(b"\xff\xfe\xfd")
        assert sources() == {"measured"}

    @pytest.mark.parametrize("where", ["a file", "a file/below"])
    def test_a_folder_that_cannot_be_made(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
    ) -> None:
        (tmp_path / "a file").write_text("")
        monkeypatch.setenv("SPARSEINFER_CACHE_DIR", str(tmp_path / where))
        assert sources() == sources() == {"measured"}
        assert (tmp_path / "a file").read_text() == ""

    def test_a_full_disk(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*args: object, **kwargs: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(_cache_files.json, "dump", full)
        assert sources() == sources() == {"measured"}
        assert list(folder.iterdir()) == []

    def test_a_user_without_a_home(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def homeless() -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.delenv("SPARSEINFER_CACHE_DIR")
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr(_cache_files.Path, "home", homeless)
        assert sources() == sources() == {"measured"}

    def test_other_threads(self, folder: Path) -> None:
        assert sources() == {"measured"}
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(before + 1)
            assert sources() == {"measured"}
        finally:
            torch.set_num_threads(before)
        assert len(list(folder.iterdir())) == 2
        assert sources() == {"remembered"}

    def test_another_instruction_set(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert sources() == {"measured"}
        monkeypatch.setattr(verdicts.ops, "active_isa", lambda: "another")
        verdicts.Verdicts().put(("key",), {PLAIN: 1.0})
        assert len(list(folder.iterdir())) == 2

    def test_places(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("SPARSEINFER_CACHE_DIR")
        monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
        assert _cache_files.directory() == Path("/xdg/sparseinfer")
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(_cache_files.Path, "home", lambda: Path("/home/me"))
        assert _cache_files.directory() == Path("/home/me/.cache/sparseinfer")


@pytest.mark.usefixtures("predictions")
class TestPredicted:
    @pytest.mark.parametrize("options", [{"measure": False}, {"budget_s": 0}, {"budget_s": 0.0}], ids=str)
    def test_without_measuring(self, folder: Path, clock: Clock, options: dict[str, Any]) -> None:
        assert sources(**options) == {"predicted"}
        assert clock.counts == []
        assert not folder.exists()

    def test_decides(self) -> None:
        dense = nn.Sequential(linear(256, 256), linear(256, 256, 0.4))
        assert kinds(convert(dense, measure=False, tokens=(16,))) == [SparseLinear, nn.Linear]
        assert kinds(convert(dense, measure=False, tokens=(1,))) == [nn.Linear, nn.Linear]

    def test_what_is_remembered_needs_no_budget(self) -> None:
        assert sources() == {"measured"}
        assert sources(budget_s=0) == {"remembered"}
        assert sources(measure=False) == {"predicted"}

    def test_a_kind_that_was_never_measured_stays_dense(self) -> None:
        """Neither its dense nor its sparse time is known."""
        for dtype, memory in ((torch.float16, 1.0), (torch.bfloat16, "speed")):
            fast = convert(nn.Sequential(linear()).to(dtype), measure=False, tokens=(1, 16), memory=memory)
            assert kinds(fast) == [nn.Linear]
        fast = convert(nn.Sequential(linear(256, 256)).half(), measure=False, memory="compact")
        assert kinds(fast) == [SparseLinear]


class TestTimes:
    def test_ratio(self) -> None:
        layout = Layout("sell")
        assert Times(1, {"a": 4.0, "b": 2.0}, {layout: 1.0}).ratio(layout) == 0.5
        assert Times(1, {"a": math.inf}, {layout: math.inf}).ratio(layout) == math.inf
        assert Times(1, {"a": math.inf}, {layout: 1.0}).ratio(layout) == math.inf


class TestOptions:
    @pytest.fixture(autouse=True)
    def no_measurement(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(timer, "time_candidates", lambda *args, **options: pytest.fail("measured"))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"weights": torch.float32}, "weights: expected None, torch.bfloat16 or torch.float16, got"),
            ({"weights": "bf16"}, "weights: expected None"),
            ({"activations": torch.float16}, "activations: expected None or torch.bfloat16, got"),
            ({"activations": torch.bfloat16}, "weights: expected torch.bfloat16 with these activations"),
            (
                {"activations": torch.bfloat16, "weights": torch.float16},
                "weights: expected torch.bfloat16 with these activations, got torch.float16",
            ),
            ({"budget_s": -1}, "budget_s: expected a number of seconds from 0, got -1"),
            ({"budget_s": math.nan}, "budget_s: expected a number of seconds from 0, got nan"),
            ({"budget_s": "5"}, "budget_s: expected a number of seconds from 0, got '5'"),
            ({"memory": 0}, "memory: expected 'speed', 'compact' or a positive number, got 0"),
            ({"memory": -1.0}, "memory: expected"),
            ({"memory": math.nan}, "memory: expected"),
            ({"memory": True}, "memory: expected"),
            ({"memory": None}, "memory: expected"),
        ],
        ids=str,
    )
    def test_bad_arguments(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            convert(nn.Sequential(linear()), **options)
