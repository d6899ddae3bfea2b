"""The parser and the rules of bench/gpu/gpu_sass.py, on machine code written by hand."""

from __future__ import annotations

import re
from itertools import count

import gpu_model
import pytest
import sass
import sass_counts
from cuda_helpers import ROOT

from sparseinfer.convert.candidates import cuda_model
from sparseinfer.ops.cuda import kernels as cuda_kernels

TOKENS = 8
PRODUCTS = "HMMA.16816.F32.BF16 R8, R4, R2, R8\n" * 2 * TOKENS
CLEARS = "STS.128 [R1], RZ\n" * 16


def listing(body: str, name: str = "kernel") -> str:
    """As cuobjdump prints it. A line "here:" names the next address, "@here" is that address."""
    at, lines, labels = count(0, 16), [], {}
    for line in filter(None, map(str.strip, body.splitlines())):
        if line.endswith(":"):
            labels[line[:-1]] = len(lines)
        else:
            lines.append(line)
    text = ["\t.target\tsm_90a", f"\t\tFunction : {name}"]
    for address, line in zip(at, lines, strict=False):
        for label, number in labels.items():
            line = line.replace(f"@{label}", f"{16 * number:#x}")
        text.append(f"        /*{address:04x}*/                   {line} ;    /* 0x000000ff02017624 */")
        text.append("                                            /* 0x000fe400078e00ff */")
    return "\n".join(text)


def counted(body: str) -> sass_counts.Counts:
    (function,) = sass.functions(listing(body))
    return sass_counts.count(function, TOKENS)


def test_functions_have_their_instructions() -> None:
    text = listing("MOV R1, R2\nEXIT", "first") + "\n" + listing("@!P0 LDS.U16 R3, [R2+0x4]\nEXIT", "second")
    first, second = sass.functions(text)
    assert (first.name, first.arch, len(first.instructions)) == ("first", "sm_90a", 2)
    load = second.instructions[0]
    assert (load.address, load.predicate, load.opcode, load.name) == (0, "!P0", "LDS.U16", "LDS")
    assert load.operands == "R3, [R2+0x4]"


def test_blocks_end_where_control_flow_does() -> None:
    body = """
        MOV R1, R2
        @P0 BRA @behind
        MOV R3, R4
        BRA P1, @behind
        BRX R16 -0x1380
        MOV R5, R6
        BRA @behind
        MOV R7, R8
        behind:
        @!P0 CALL.REL.NOINC @end
        BRA.DIV ~URZ, @end
        end:
        EXIT
    """
    (function,) = sass.functions(listing(body))
    followed = [set(block.successors) for block in sass.blocks(function.instructions)]
    # An indexed branch goes to what nothing else reaches; a branch for diverged warps is not taken.
    assert followed == [{1, 5}, {2, 5}, {3, 4}, {5}, {5}, {6, 7}, {7}, set()]


def test_loops_are_nested() -> None:
    body = "outer:\nMOV R1, R2\ninner:\nMOV R3, R4\n@P0 BRA @inner\n@P1 BRA @outer\nEXIT"
    (function,) = sass.functions(listing(body))
    inner, outer = sass.loops(sass.blocks(function.instructions))
    assert inner.blocks < outer.blocks
    assert (inner.header, inner.latches) == (1, {1})


def test_what_a_bitmap_takes_per_tile() -> None:
    counts = counted(f"""
        MOV R0, R0
        tile:
        POPC R1, R2
        @P0 LDS.U16 R3, [R4]
        @P1 BRA @landed
        wait:
        SYNCS.PHASECHK.TRANS64.TRYWAIT P2, [R1], R2
        @P2 BRA @wait
        landed:
        {PRODUCTS}
        @P3 BRA @tile
        STG.E [R2], R3
        EXIT
    """)
    assert counts.tile == {"POPC": 1, "LDS.U16": 1, "BRA": 2, "HMMA.16816.F32.BF16": 2 * TOKENS}
    assert counts.ring == {"SYNCS.PHASECHK.TRANS64.TRYWAIT": 1, "BRA": 1}
    # Half a chunk waits every other time.
    tile = counts.at(0, sass_counts.CHUNK_BYTES / 2)
    assert tile["BRA"] == 2.5
    found = sass_counts.instructions(tile)
    assert (found.issued, found.alu) == (2 * TOKENS + 5, 0)
    assert "STG.E" not in tile


def test_copies_of_a_wait_share_its_count() -> None:
    wait = "@P1 BRA @{0}\nSYNCS.PHASECHK.TRANS64.TRYWAIT P2, [R1], R2\n{0}:\nMOV R1, R2\n"
    body = f"tile:\n{wait.format('one')}{wait.format('two')}{PRODUCTS}@P3 BRA @tile\nEXIT"
    assert counted(body).ring == {"SYNCS.PHASECHK.TRANS64.TRYWAIT": 1}


def pair_loop(name: str, pairs: int, loads: bool) -> str:
    pair = "LDS R2, [R1]\n" * loads + "LDS.U8 R4, [R5]\n" + "STS.U16 [R3], R2\n" * 2
    return f"{name}:\n{pair * pairs}@P1 BRA @{name}\n"


@pytest.mark.parametrize(("pairs", "cleared"), [(6.0, "one by one"), (20.0, "as a whole")])
def test_what_a_delta_takes_per_tile(pairs: float, cleared: str) -> None:
    counts = counted(f"""
        tile:
        MOV R0, R0
        {pair_loop("many", 4, True)}
        {pair_loop("one", 1, True)}
        {PRODUCTS}
        @P2 BRA @whole
        {pair_loop("unmany", 4, False)}
        {pair_loop("unone", 1, False)}
        BRA @next
        whole:
        {CLEARS}
        next:
        @P3 BRA @tile
        EXIT
    """)
    assert counts.pairs == {"LDS": 1, "LDS.U8": 1, "STS.U16": 2, "BRA": 0.25}
    assert counts.pair == {"LDS": 1, "LDS.U8": 1, "STS.U16": 2, "BRA": 1}
    assert counts.cleared_pairs == {"LDS.U8": 1, "STS.U16": 2, "BRA": 0.25}
    assert counts.clear["STS.128"] == 16
    tile = counts.at(pairs, 0)
    assert tile["LDS"] == pairs
    if cleared == "one by one":
        assert tile["STS.U16"] == 4 * pairs
        assert "STS.128" not in tile
    else:
        assert tile["STS.U16"] == 2 * pairs
        assert tile["STS.128"] == 16
    again = sass_counts.Counts.loaded({name: dict(code) for name, code in vars(counts).items()})
    assert again.at(pairs, 0) == tile


def test_constants_are_those_of_the_kernels() -> None:
    for path, name, value in (
        ("csrc/cuda/ring.h", "kChunkBytes", sass_counts.CHUNK_BYTES),
        ("csrc/cuda/ring.h", "kChunkBytes", cuda_model.CHUNK_BYTES),
        ("csrc/cuda/tiles.cuh", "kFewPairs", cuda_model.FEW_PAIRS),
    ):
        (found,) = re.findall(rf"constexpr int {name} = (\d+);", (ROOT / path).read_text())
        assert int(found) == value, name


def test_a_function_without_products_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a loop with 16 products"):
        counted("tile:\nMOV R1, R2\n@P0 BRA @tile\nEXIT")


def test_pipes() -> None:
    by_pipe = {
        "ALU": (
            "LOP3.LUT",
            "IADD3",
            "VIADD",
            "ISETP.GE.AND",
            "PRMT",
            "SHF.R.U32.HI",
            "R2P",
            "F2FP.BF16.PACK_AB",
        ),
        "FMA": ("IMAD.MOV.U32", "FFMA"),
        "LSU": ("LDS.U16", "STS.128", "LDG.E.128.CONSTANT", "LDGSTS.E.BYPASS.128", "UBLKCP.S.G"),
        "XU": ("POPC", "REDUX.MAX.S32"),
        "uniform": ("UIADD3", "R2UR", "ULDC.64", "S2UR", "LDC.64"),
        "control": ("BRA", "BSSY", "WARPSYNC.ALL", "LDGDEPBAR", "BAR.SYNC"),
        "tensor": ("HMMA.16816.F32.BF16", "HGMMA.64x8"),
    }
    for pipe, opcodes in by_pipe.items():
        assert {opcode: sass_counts.pipe(opcode) for opcode in opcodes} == dict.fromkeys(opcodes, pipe)


def test_the_planner_knows_what_was_counted() -> None:
    """Its constants, in cuda_model.py, against bench/results/gpu_sass.json."""
    counted = {name: row for name, row in gpu_model.counted_instructions().items() if name.endswith("sm90")}
    assert len(counted) == 12
    n, k = 4096, 4096
    kernels = {kernel.name: kernel for kernel in cuda_kernels.kernels()}
    for name, row in counted.items():
        kernel = kernels[name]
        for sparsity in (0.5, 0.8):
            sample = gpu_model.sample(kernel.packing, sparsity)
            nbytes = round(sample.nbytes * n * k / 4096)
            asked = (cuda_model.H100, kernel.packing, kernel.tile_tokens, n, k, 8, nbytes)
            counts = sass_counts.Counts.loaded(row["counts"]).at(sample.pairs, sample.nbytes)
            known = cuda_model.tiled_terms(*asked)
            exact = cuda_model.tiled_terms(*asked, sass_counts.instructions(counts))
            for term in ("issue", "ALU"):
                assert known[term] == pytest.approx(exact[term], rel=0.1), (name, sparsity)
