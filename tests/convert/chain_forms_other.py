"""Other ways to write calls one after another in a forward, for test_chains.py: results are what counts.

None: joined or not. []: not joined, because somebody else reads what the layer returns.
"""

# ruff: noqa: RET504  (statements are what this is about)

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STATE: Any = None


def read_later(self: Any, x: Tensor) -> Tensor:
    y = self.fc(x)
    z = self.act(y)
    return z + y


def augmented_later(self: Any, x: Tensor) -> Tensor:
    y = self.fc(x)
    z = self.act(y)
    y += z
    return y


def an_element_augmented_later(self: Any, x: Tensor) -> Tensor:
    y = self.fc(x)
    z = self.act(y)
    y[0] += 1
    return z + y


def deleted_later(self: Any, x: Tensor) -> Tensor:
    y = self.fc(x)
    z = self.act(y)
    del y
    return z


def deleted_and_then_missed(self: Any, x: Tensor) -> Tensor:
    y = self.fc(x)
    y = self.act(y)
    z = y + 1
    del y
    try:
        return y  # noqa: F821
    except UnboundLocalError:
        return z


def read_in_the_next_round(self: Any, x: Tensor) -> Tensor:
    y = x
    for _ in range(2):
        x = x + y.clamp(-4, 4)
        y = self.fc(x)
        z = self.act(y)
    return z


def read_by_a_function_within(self: Any, x: Tensor) -> Tensor:
    y = self.fc(x)

    def later() -> Tensor:
        return y

    z = self.act(y)
    return z + later()


def overwritten_under_a_function_within(self: Any, x: Tensor) -> Tensor:
    y = x

    def now() -> Tensor:
        return y

    y = self.fc(x)
    y = self.act(y)
    return now() + x


def read_by_a_lambda(self: Any, x: Tensor) -> Tensor:
    y = self.fc(x)
    z = self.act(y)
    return (lambda: y + z)()


def read_by_a_comprehension(self: Any, x: Tensor) -> Tensor:
    y = self.fc(x)
    z = self.act(y)
    return sum([y for _ in range(2)], z)


def two_targets(self: Any, x: Tensor) -> Tensor:
    y = z = self.fc(x)
    y = self.act(y)
    return y + z


def into_two_targets(self: Any, x: Tensor) -> Tensor:
    y = self.fc(x)
    y = z = self.act(y)
    return y + z


def tuple_targets(self: Any, x: Tensor) -> Tensor:
    y, z = self.fc(x), x
    y = self.act(y)
    (w,) = (y,)
    return w + z


def walrus(self: Any, x: Tensor) -> Tensor:
    z = self.act(y := self.fc(x))
    return z + y


def walrus_in_the_argument(self: Any, x: Tensor) -> Tensor:
    y = self.fc(z := x + 1)
    y = self.act(y)
    return y + z


def annotated(self: Any, x: Tensor) -> Tensor:
    y: Tensor = self.fc(x)
    y = self.act(y)
    return y


def an_attribute_as_target(self: Any, x: Tensor) -> Tensor:
    self.kept = self.fc(x)
    y = self.act(self.kept)
    return y + self.kept


def global_state(self: Any, x: Tensor) -> Tensor:
    global STATE
    STATE = self.fc(x)
    STATE = self.act(STATE)
    return STATE


def nonlocal_state(self: Any, x: Tensor) -> Tensor:
    y = x

    def change() -> None:
        nonlocal y
        y = self.fc(x)
        y = self.act(y)

    change()
    return y


def by_keyword(self: Any, x: Tensor) -> Tensor:
    return self.act(input=self.fc(x))


def a_layer_by_keyword(self: Any, x: Tensor) -> Tensor:
    return self.act(self.fc(input=x))


def all_starred(self: Any, x: Tensor) -> Tensor:
    return self.act(*[self.fc(x)])


def a_function_with_options(self: Any, x: Tensor) -> Tensor:
    return F.gelu(self.fc(x), approximate="tanh") + F.silu(self.other(x), inplace=True)


def a_property(self: Any, x: Tensor) -> Tensor:
    return self.computed(self.fc(x))


def an_index_that_is_computed(self: Any, x: Tensor) -> Tensor:
    for i in range(1):
        x = self.layers[i + 1](self.layers[i](x))
    return self.layers[-1](x)


def a_local_name(self: Any, x: Tensor) -> Tensor:
    act, fc = self.relu, self.fc
    return act(fc(x))


def self_is_another(self: Any, x: Tensor) -> Tensor:
    self = self.inner
    return self[1](self[0](x))


def names_that_change(self: Any, x: Tensor) -> Tensor:
    self.act = nn.ReLU()
    y = self.act(self.fc(x))
    self.act = nn.SiLU()
    return y + self.act(self.fc(x))


def an_argument_that_changes_the_activation(self: Any, x: Tensor) -> Tensor:
    y = self.fc(self.turned(x))
    y = self.act(y)
    return y


def an_argument_that_changes_the_activation_nested(self: Any, x: Tensor) -> Tensor:
    return self.act(self.fc(self.turned(x)))


def under_try(self: Any, x: Tensor) -> Tensor:
    try:
        y = self.fc(x)
        y = self.act(y)
        y = self.act(y, y)
    except TypeError:
        return y
    return x


def where_an_error_is_suppressed(self: Any, x: Tensor) -> Tensor:
    y = x
    with suppress(TypeError):
        y = self.fc(x)
        y = self.act(y) if len(x) < 4 else self.act(y, y)
    return y


def after_finally(self: Any, x: Tensor) -> Tensor:
    y = x
    try:
        y = self.fc(x)
        y = self.act(y)
        return y
    finally:
        self.kept = y


def under_match(self: Any, x: Tensor) -> Tensor:
    match x.shape[0]:
        case 0:
            y = self.other(x)
        case _:
            y = self.fc(x)
            y = self.act(y)
    return y


def around_a_statement(self: Any, x: Tensor) -> Tensor:
    y = self.fc(x)
    y.clamp_(-3, 3)
    y = self.act(y)
    return y


def in_an_f_string(self: Any, x: Tensor) -> Tensor:
    y = self.fc(x)
    z = self.act(y)
    assert f"{y.shape}"
    return z


def in_a_while_that_reads(self: Any, x: Tensor) -> Tensor:
    y = x
    while not bool((y.abs() > 50).any()):
        y = self.fc(y)
        y = self.act(y)
        y = y.round()
    return y.clamp(-50, 50)


def with_else(self: Any, x: Tensor) -> Tensor:
    for _ in range(2):
        pass
    else:
        y = self.fc(x)
        y = self.act(y)
    return y


def generated(self: Any, x: Tensor) -> Tensor:
    return next(self.act(self.fc(x)) for _ in range(1))


@torch.no_grad()
def behind_a_decorator(self: Any, x: Tensor) -> Tensor:
    return self.act(self.fc(x))


def sees_its_variables(self: Any, x: Tensor) -> Tensor:
    y = self.fc(x)
    z = self.act(y)
    return z + locals()["y"]


def a_dropout_between(self: Any, x: Tensor) -> Tensor:
    return self.act(self.inner[2](self.fc(x)))


def an_activation_of_the_input(self: Any, x: Tensor) -> Tensor:
    return self.fc(self.relu(x))


def an_activation_twice(self: Any, x: Tensor) -> Tensor:
    return self.act(self.act(self.fc(x)))


def a_method_of_the_result(self: Any, x: Tensor) -> Tensor:
    y = x
    if len(x) > 3:  # not for the example
        y = self.fc(x)
        return y.add(self.act(y))
    return self.act(self.fc(y))


def a_method_of_the_result_assigned(self: Any, x: Tensor) -> Tensor:
    y = x
    if len(x) > 3:
        y = self.fc(x)
        y = y.mul(self.act(y))
    return y.clamp(-8, 8) + self.act(self.fc(x))


OTHERS: dict[Any, list[str] | None] = {
    read_later: [],
    augmented_later: [],
    an_element_augmented_later: [],
    deleted_later: None,
    deleted_and_then_missed: None,
    read_in_the_next_round: [],
    read_by_a_function_within: [],
    overwritten_under_a_function_within: None,
    read_by_a_lambda: [],
    read_by_a_comprehension: [],
    two_targets: [],
    into_two_targets: None,
    tuple_targets: [],
    walrus: [],
    walrus_in_the_argument: None,
    annotated: None,
    an_attribute_as_target: [],
    global_state: None,
    nonlocal_state: None,
    by_keyword: None,
    a_layer_by_keyword: ["silu"],
    all_starred: None,
    a_function_with_options: None,
    a_property: None,
    an_index_that_is_computed: None,
    a_local_name: None,
    self_is_another: None,
    names_that_change: None,
    an_argument_that_changes_the_activation: None,
    an_argument_that_changes_the_activation_nested: None,
    under_try: None,
    where_an_error_is_suppressed: None,
    after_finally: None,
    under_match: None,
    around_a_statement: None,
    in_an_f_string: None,
    in_a_while_that_reads: None,
    with_else: None,
    generated: None,
    behind_a_decorator: None,
    sees_its_variables: None,
    a_dropout_between: None,
    an_activation_of_the_input: None,
    an_activation_twice: None,
    a_method_of_the_result: None,
    a_method_of_the_result_assigned: None,
}
