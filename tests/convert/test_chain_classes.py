"""The classes of modules that hand a layer's result to `chain`: they pass for what they were, everywhere."""

from __future__ import annotations

import copy
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from copies import by_file, by_pickle
from fusion_helpers import Block, Net, assert_same, converted, imported, ints, square, watch
from torch import Tensor, nn

from sparseinfer import convert, convert_, densify_

pytestmark = pytest.mark.usefixtures("script")


class Reduces(Block):
    """Says itself how it is pickled."""

    def __reduce__(self) -> Any:
        return type(self)._rebuilt, (), self.__dict__

    @classmethod
    def _rebuilt(cls) -> Any:
        return cls()


class NewArguments(Block):
    def __new__(cls, *args: Any, flag: bool = False) -> Any:
        made = super().__new__(cls)
        object.__setattr__(made, "flag", flag)
        return made

    def __getnewargs_ex__(self) -> Any:
        return (), {"flag": True}


class Copies(Block):
    def __deepcopy__(self, memo: Any) -> Any:
        made = type(self)()
        made.fc, made.act = copy.deepcopy(self.fc, memo), copy.deepcopy(self.act, memo)
        return made


class Stateful(Block):
    def __getstate__(self) -> Any:
        return {"state": self.__dict__.copy()}

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state["state"])


class Registers(nn.Module):
    """Its subclasses are listed by their names, and must say what they are for."""

    known: dict[str, type] = {}  # noqa: RUF012

    def __init_subclass__(cls, *, purpose: str, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Registers.known[cls.__name__] = cls
        cls.purpose = purpose  # type: ignore[attr-defined]


class Registered(Registers, purpose="test"):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.act = square(), nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.fc(x))


class Calls(Block):
    """Of its class's own attributes, by `type(self)` and `super()`."""

    scale = 3

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x) if x is None else x
        return self.act(self.fc(x)) * type(self).scale + super().forward(x)


COPIES = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "torch.save": by_file,
    **{f"pickle {p}": partial(by_pickle, protocol=p) for p in range(2, 6)},
}


class TestPassFor:
    def test_names_and_instances(self) -> None:
        dense = Net().eval()
        fast = converted(dense)
        for got, wanted in ((fast.block, Block), (fast.tail, nn.Sequential), (fast, Net)):
            kind = type(got)
            assert isinstance(got, wanted)
            for name in ("__name__", "__qualname__", "__module__", "__doc__"):
                assert getattr(kind, name) == getattr(wanted, name)
        assert repr(fast).splitlines()[1].strip() == "(block): Block("
        assert type(fast.block).forward.__doc__ == "What a block does."
        assert type(fast) is Net  # nothing to join in its own forward
        assert kinds_of(dense) == [Net, Block, nn.Linear, nn.SiLU, nn.Sequential, nn.Linear, nn.ReLU]

    def test_instances_made_later_are_the_class_s_own(self) -> None:
        fast = converted(Net())
        made = Block()
        assert type(made) is Block
        assert type(made) is not type(fast.block)
        assert Block.forward is not type(fast.block).forward

    def test_one_class_for_all_that_are_alike(self) -> None:
        one, two = converted(Net()), converted(Net())
        assert type(one.block) is type(two.block)

    def test_densify_restores_them(self) -> None:
        dense = Net().eval()
        fast = converted(dense)
        assert type(fast.block) is not Block
        densify_(fast)
        assert kinds_of(fast) == kinds_of(dense)
        with torch.no_grad():
            assert torch.equal(fast(ints()), dense(ints()))
        again = convert_(fast, example_inputs=ints())
        assert_same(again, dense, ints())

    def test_convert_twice(self, monkeypatch: pytest.MonkeyPatch) -> None:
        dense = Net().eval()
        with pytest.warns(UserWarning, match="got none of"):
            fast = convert(converted(dense), example_inputs=ints())
        assert_same(fast, dense, ints())
        done = watch(monkeypatch)
        fast(ints())
        assert done == ["silu", "relu"]
        assert kinds_of(densify_(fast)) == kinds_of(dense)

    def test_a_model_that_is_joined_itself(self) -> None:
        dense = Block().eval()
        fast = converted(dense)
        assert_same(fast, dense, ints())
        assert type(densify_(fast)) is Block

    def test_attributes_of_the_class(self) -> None:
        dense = Calls().eval()
        fast = converted(dense)
        assert_same(fast, dense, ints())
        Calls.scale = 5
        try:
            assert_same(fast, dense, ints())
        finally:
            Calls.scale = 3

    def test_a_class_that_must_be_told_what_for(self) -> None:
        """What it does for its subclasses is for those of the user, and must not fail here."""
        dense = Registered().eval()
        fast = converted(dense)
        assert_same(fast, dense, ints())
        assert Registers.known == {"Registered": Registered}


def kinds_of(module: nn.Module) -> list[type]:
    return [type(m) for m in module.modules()]


class TestCopies:
    @pytest.mark.parametrize("how", COPIES)
    @pytest.mark.parametrize("kind", [Net, Block, Copies, Stateful, Calls])
    def test_stay_joined(self, kind: Any, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
        dense = kind().eval()
        COPIES[how](dense)  # what the dense model cannot do, nobody asks for
        fast = converted(dense)
        twin = COPIES[how](fast)
        assert kinds_of(twin) == kinds_of(fast)
        assert_same(twin, dense, ints())
        done = watch(monkeypatch)
        fast(ints())
        before = list(done)
        done.clear()
        twin(ints())
        assert done == before != []

    @pytest.mark.parametrize("how", COPIES)
    @pytest.mark.parametrize("kind", [Reduces, NewArguments])
    def test_made_in_a_way_of_their_own_are_left_alone(self, kind: Any, how: str) -> None:
        dense = kind().eval()
        fast = converted(dense)
        assert type(fast) is kind
        assert_same(COPIES[how](fast), dense, ints())

    @pytest.mark.parametrize("protocol", [0, 1])
    def test_old_protocols(self, protocol: int) -> None:
        dense = Net().eval()
        assert by_pickle(dense, protocol)
        assert_same(by_pickle(converted(dense), protocol), dense, ints())

    def test_another_process_loads_it(self, tmp_path: Path) -> None:
        """Also where the source of the class cannot be read any more."""
        text = (
            "import torch\nfrom torch import nn\n\n\n"
            "class Elsewhere(nn.Module):\n"
            "    def __init__(self):\n        super().__init__()\n"
            "        self.fc, self.act = nn.Linear(40, 40), nn.SiLU()\n\n"
            "    def forward(self, x):\n        x = self.fc(x)\n        x = self.act(x)\n        return x\n"
        )
        (tmp_path / "elsewhere_net.py").write_text(text)
        sys.path.insert(0, str(tmp_path))
        try:
            import elsewhere_net  # type: ignore[import-not-found]

            dense = elsewhere_net.Elsewhere().eval()
            dense.fc = square()
            fast = converted(dense)
            assert type(fast) is not type(dense)
            torch.save((fast, ints(), fast(ints())), tmp_path / "model.pt")
        finally:
            sys.path.remove(str(tmp_path))
        load = (
            "import sys, torch\nsys.path.insert(0, '.')\n"
            "fast, x, y = torch.load('model.pt', weights_only=False)\n"
            "assert type(fast).__name__ == 'Elsewhere', type(fast)\n"
            "assert torch.equal(fast(x), y)\nprint(type(fast).__mro__[1].__name__)\n"
        )
        run = [sys.executable, "-c", load]
        result = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        assert result.stdout.strip() == "Elsewhere"
        # Compiled only: the class is what it was, and results with it.
        subprocess.run(
            [sys.executable, "-m", "compileall", "-b", "-q", "elsewhere_net.py"], cwd=tmp_path, check=True
        )
        (tmp_path / "elsewhere_net.py").unlink()
        load = load.replace("assert torch.equal(fast(x), y)", "assert (fast(x) - y).abs().max() < 1e-5")
        result = subprocess.run([*run[:2], load], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        assert result.stdout.strip() == "Module"

    def test_source_that_was_edited_after_the_first_conversion(self, tmp_path: Path) -> None:
        """A forward is made anew only from what runs."""
        text = (
            "from torch import nn\n\n\nclass Edited(nn.Module):\n"
            "    def __init__(self, act):\n        super().__init__()\n"
            "        self.fc, self.act = FC(), act\n\n"
            "    def forward(self, x):\n"
            "        y = self.fc(x)\n        y = self.act(y)\n        return y + 1 if len(x) > 3 else y\n"
        )
        path = tmp_path / "edited.py"
        module = imported(path, text)
        module.FC = square
        converted(module.Edited(nn.Tanh()))  # nothing to join yet
        path.write_text(text.replace("y + 1", "y - 9"))
        dense = module.Edited(nn.SiLU()).eval()
        assert_same(converted(dense), dense, ints())
