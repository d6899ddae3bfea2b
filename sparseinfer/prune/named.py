"""Named: a base for classes that can be selected by name on the command line, in `hub` and in `bench`."""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar

T = TypeVar("T", bound="Named")

_named: list[type[Named]] = []


class Named:
    """A base class whose subclasses are looked up by name. Setting `name` registers a subclass.

    name  of the class on the command line; "": it cannot be selected there
    """

    name: ClassVar[str] = ""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if vars(cls).get("name"):
            _named.append(cls)

    @classmethod
    def by_name(cls: type[T]) -> dict[str, type[T]]:
        """The subclasses at any depth that define a name, in the order of their definition."""
        return {named.name: named for named in _named if issubclass(named, cls)}
