"""How a setting is declared: once, at its field, with all that reading, checking and documenting it takes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from typing import Any

from environs import Env


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """An environment variable.

    help: what it sets, in Markdown. type: the method of Env that reads it. default: as that method takes it; `...` if
    the variable is required. check: raises ValidationError for a value that cannot work. convert: makes the field's
    value of it. shown_default: what the documentation says where the default alone would not do.
    """

    name: str
    help: str
    type: Callable[..., Any] = Env.str
    default: Any = ...
    check: Callable[[Any], object] | list[Callable[[Any], object]] | None = None
    convert: Callable[[Any], Any] = lambda value: value
    shown_default: str | None = None

    def read(self, env: Env) -> Any:
        """Return the value, checked but not converted, or None if there is a problem, which `env` then knows."""
        return self.type(env, self.name, self.default, validate=self.check)

    def row(self) -> str:
        """Return the variable's row of the documentation's table."""
        return f"| `{self.name}` | {self.help} | {self.shown_default or self._show_default()} |"

    def _show_default(self) -> str:
        if self.default is ...:
            return "required"
        if self.default in {None, "", ()}:
            return "none"
        return f"`{str(self.default).lower()}`" if isinstance(self.default, bool) else f"`{self.default}`"


def from_variables(*variables: Variable, secret: bool = False) -> Any:
    """Return a dataclass field that is computed from environment variables; `secret` keeps it out of the repr."""
    return field(repr=not secret, metadata={"variables": variables})


def setting(name: str, text: str, *, secret: bool = False, **others: Any) -> Any:
    """Return a dataclass field that is one environment variable; `others` are arguments of Variable."""
    one = Variable(name=name, help=text, **others)
    default = {} if one.default is ... else {"default": one.convert(one.default)}
    return field(repr=not secret, metadata={"variables": (one,)}, **default)


def variables_of(cls: Any) -> Iterator[tuple[str, Variable]]:
    """Yield each variable of a dataclass of settings, with the name of its field."""
    for each in fields(cls):
        for one in each.metadata.get("variables", ()):
            yield each.name, one
