"""What a call of prune_ looks at, and how it names the rest."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from generators import values
from test_prune_kinds import E, Encoder, TinyExperts, X
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as torch_prune

from sparseinfer.prune import (
    Magnitude,
    OneShot,
    Pruner,
    PruneReport,
    Wanda,
    prunable_layers,
    prune_,
    synflow_,
)


class TestSelection:
    def names(self, **how) -> list[str]:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return list(prunable_layers(Encoder(), **how))

    @pytest.mark.parametrize(
        ("how", "expected"),
        [
            ({"targets": "LSTM"}, ["lstm.weight_ih_l0", "lstm.weight_hh_l0"]),
            ({"targets": ["lstm.weight_hh_l0"]}, ["lstm.weight_hh_l0"]),
            ({"targets": ["re:.*weight_ih"]}, ["lstm.weight_ih_l0"]),
            (
                {"targets": ["re:.*in_proj", "lstm"], "ignore": "re:.*_hh_"},
                [*(f"encoder.layers.{i}.self_attn.in_proj_weight" for i in (0, 1)), "lstm.weight_ih_l0"],
            ),
            ({"targets": "lstm", "filter_fn": lambda module, fqn: fqn != "lstm"}, None),
            ({"ignore": ["TransformerEncoderLayer", "MultiheadAttention", "Linear", "lstm.weight_ih_l0"]}, 1),
        ],
        ids=str,
    )
    def test_weights_by_module_class_and_own_name(self, how, expected):
        if expected is None:
            with pytest.raises(UserWarning, match="filter: expected at least one"):
                self.names(**how)
        elif expected == 1:
            assert self.names(**how) == ["lstm.weight_hh_l0"]
        else:
            assert self.names(**how) == expected

    def test_a_target_without_a_match_is_told_beside_one_of_a_weight(self):
        with pytest.warns(UserWarning, match=r"targets: expected each to match .* got 'nothing' without"):
            found = prunable_layers(Encoder(), targets=["lstm.weight_hh_l0", "nothing"])
        assert list(found) == ["lstm.weight_hh_l0"]

    def test_a_weight_that_torch_prunes_is_refused(self):
        for name, module in (("weight_ih_l0", nn.GRU(4, 4)), ("gate_up_proj", TinyExperts(False))):
            torch_prune.l1_unstructured(module, name, amount=0.5)
            with pytest.raises(ValueError, match=rf"{name}: expected a parameter, got a tensor computed by"):
                prunable_layers(module)

    def test_attention_that_computes_something_else_of_its_own(self):
        class Other(nn.MultiheadAttention):
            def forward(self, x: Tensor) -> Tensor:
                return self.out_proj(x)

        net = Other(E, 2).eval()
        report = prune_(net, Wanda(0.5), batches=[X])
        assert [layer.fqn for layer in report.layers] == ["out_proj"]
        assert [weight.name for weight in report.unlooked] == ["in_proj_weight"]


class Words(nn.Module):
    """A model with weights of no kind that is pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(10, 4)
        self.places = nn.Parameter(values(1, 5, 4))
        self.volume = nn.Conv3d(1, 2, 2)
        self.norm = nn.LayerNorm(4)
        self.linear = nn.Linear(4, 6)
        self.head = nn.Linear(4, 10)
        self.register_parameter("none", None)
        self.counts = nn.Parameter(torch.ones(3, 3, dtype=torch.long), requires_grad=False)


def dense_share(net: nn.Module) -> float:
    """Zeros of all floating-point parameters with two dimensions, counted one by one."""
    found = {id(p): p for p in net.parameters() if p.dim() > 1 and p.is_floating_point()}
    zeros = sum(int((p == 0).sum()) for p in found.values())
    return zeros / sum(p.numel() for p in found.values())


def test_what_is_of_no_kind_is_named_with_its_size():
    net = Words()
    report = prune_(net, Magnitude(0.5))
    assert [(weight.name, weight.shape) for weight in report.unlooked] == [
        ("places", (1, 5, 4)),
        ("words.weight", (10, 4)),
        ("volume.weight", (2, 1, 2, 2, 2)),
    ]
    assert {weight.why for weight in report.unlooked} == {"it is of no kind of layer that is pruned"}
    assert report.sparsity == 0.5
    assert report.model_sparsity == pytest.approx(dense_share(net)) == 32 / 140
    assert str(report).splitlines()[-2:] == [
        "not looked at: words.weight 10x4, places 1x5x4, volume.weight 2x1x2x2x2; 76 weights",
        "sparsity of the whole model: 0.2286",
    ]


def test_many_names_are_cut_short():
    net = nn.ModuleDict({str(i): nn.Embedding(i + 1, 2) for i in range(6)} | {"linear": nn.Linear(2, 2)})
    text = str(prune_(net, Magnitude(0.5))).splitlines()[-2]
    assert text == (
        "not looked at: 5.weight 6x2, 4.weight 5x2, 3.weight 4x2, 2.weight 3x2 and 2 more; 42 weights"
    )


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({"ignore": "Embedding"}, ["places", "volume.weight"]),
        ({"ignore": ["words", "re:pl"]}, ["volume.weight"]),
        ({"ignore": ["words.weight", "places", "re:vol", "head"]}, []),
        ({"targets": "linear"}, ["places", "words.weight", "volume.weight"]),
        ({"filter_fn": lambda module, fqn: fqn == "head"}, ["places", "words.weight", "volume.weight"]),
    ],
    ids=str,
)
def test_what_was_left_out_on_purpose_is_not_named(how, expected):
    net = Words()
    report = prune_(net, Magnitude(0.5), **how)
    assert [weight.name for weight in report.unlooked] == expected
    assert report.model_sparsity == pytest.approx(dense_share(net))


def test_nothing_to_name():
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    report = prune_(net, Magnitude(0.5))
    assert not report.unlooked
    assert str(report).splitlines()[-1].startswith("total")
    assert report.model_sparsity == report.sparsity == 0.5
    assert PruneReport(report.layers).model_sparsity == 0.5


def test_a_tied_embedding_was_looked_at():
    net = Words()
    net.head.weight = net.words.weight
    for ignore in (None, "head"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the embedding that is pruned too
            report = prune_(net, Magnitude(0.5), ignore=ignore)
        assert [weight.name for weight in report.unlooked] == ["places", "volume.weight"]
        assert report.model_numel == 40 + 20 + 16 + 24


def test_weights_that_something_computes_are_of_a_known_kind():
    """They are refused if they are selected, and left out on purpose otherwise."""
    net = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)), nn.Linear(4, 4))
    parametrizations.weight_norm(net[0])
    parametrizations.orthogonal(net[1])
    torch_prune.l1_unstructured(net[2], "weight", amount=0.5)
    assert not prune_(net, Magnitude(0.5), ignore=["0", "1", "2"]).unlooked


def test_a_weight_without_data_counts_as_dense():
    net = Words()
    net.words = nn.Embedding(10, 4, device="meta")
    report = prune_(net, Magnitude(0.5))
    assert report.unlooked[1].name == "words.weight"
    assert (report.model_numel, report.model_nnz) == (140, 108)


def test_pruners_say_it_too():
    net = Words()
    report = Pruner(net, Magnitude(0.5), OneShot(), ignore="Embedding").step()
    assert [weight.name for weight in report.unlooked] == ["places", "volume.weight"]
    net = nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 2))
    report = synflow_(net, 0.5, torch.tensor([[0, 1, 2]]), iterations=2)
    assert [weight.name for weight in report.unlooked] == ["0.weight"]


def test_the_case_of_the_issue():
    net = nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 4, 128, batch_first=True), 2)
    report = prune_(net, Magnitude(0.9))
    assert report.sparsity == pytest.approx(0.9, abs=1e-4)
    assert report.sparsity == pytest.approx(dense_share(net))
    x = values(2, 5, 64)
    net.eval()
    with torch.no_grad():
        fast = copy.deepcopy(net)
        for layer in fast.layers:
            assert not layer.self_attn.in_proj_weight.all()
        # Zeros in place are what the fast path of an encoder reads, too.
        torch.testing.assert_close(fast(x), net.requires_grad_(True)(x))
