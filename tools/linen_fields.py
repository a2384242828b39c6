"""An extension of Griffe: Linen modules are dataclasses, so that their fields make a signature."""

import griffe

LINEN_MODULE = "flax.linen.Module"
DATACLASS = griffe.ExprName("dataclasses.dataclass")


class LinenFields(griffe.Extension):
    """Marks Linen modules as the dataclasses that Flax makes of them."""

    def on_package(self, *, pkg: griffe.Module, **_) -> None:
        """Runs before Griffe's own extension writes the signatures of dataclasses."""
        for class_ in _classes(pkg):
            if _is_linen(class_):
                class_.decorators.append(griffe.Decorator(DATACLASS, lineno=None, endlineno=None))


def _classes(owner):
    for member in owner.members.values():
        if not member.is_alias and (member.is_class or member.is_module):
            if member.is_class:
                yield member
            yield from _classes(member)


def _is_linen(class_):
    lineage = [class_, *class_.mro()]
    return any(base.canonical_path == LINEN_MODULE for each in lineage for base in each.bases)
