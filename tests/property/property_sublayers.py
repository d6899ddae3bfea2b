"""Draws the sublayers of encoders into programs."""

from __future__ import annotations

import property_programs
from property_programs import MODULES, SIZES, Program


class EncoderProgram(Program):
    """A program that may also have sublayers."""

    def sublayer(self) -> None:
        """One or two Linears, whose result is added to a residual and normalized, as in encoders."""
        v = self.value(lambda s: len(s) in (2, 3) and isinstance(s[-1], int))
        if v is None:
            return
        shape, d = self.values[v], self.values[v][-1]
        other = self.pick([name for name, each in self.values.items() if each == shape])
        text, n = v, d
        for last in (False, True) if self.maybe(2) else (True,):
            width = d if last else self.pick(SIZES)
            layer = self.make(f"nn.Linear({n}, {width})")
            act = self.make(self.pick(MODULES), "act") if not last or self.maybe(4) else ""
            text, n = f"self.{layer}({text})", width
            text = f"self.{act}({text})" if act else text
        text = f"self.{self.make('nn.Dropout(0.1)', 'drop')}({text})" if self.maybe(2) else text
        norm = self.make(
            f"nn.LayerNorm({d}{self.pick(('', ', elementwise_affine=False', ', eps=0.1'))})", "n"
        )
        sums = ("{w} + {v}", "{v} + {w}", "{v} + {w}.clone()", "{v} - {w}")
        if self.maybe(2):
            text = self.let(text, shape)
        self.let(f"self.{norm}({self.pick(sums).format(v=text, w=other)})", shape)


STATEMENTS = (*property_programs.STATEMENTS, ("sublayer", 2))
