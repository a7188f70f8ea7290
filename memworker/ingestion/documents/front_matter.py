"""Front matter of Markdown: YAML between lines of ``---``, or TOML between ``+++``, as fields."""

from __future__ import annotations

import re
from typing import Any

from memworker import values

_MOST_CHARS = 64 << 10
_YAML = re.compile(r"---[ \t]*\n(.*?)^(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL | re.MULTILINE)
_TOML = re.compile(r"\+\+\+[ \t]*\n(.*?)^\+\+\+[ \t]*(?:\n|\Z)", re.DOTALL | re.MULTILINE)


class Malformed(ValueError):
    """What looks like front matter and cannot be read as such."""


def parted(text: str) -> tuple[dict[str, Any], str]:
    """Part front matter from the text behind it; fields are as `values.plain_mapping` gives them.

    A text without any, or with lines between rules that hold no fields, is returned whole.
    Raises Malformed.
    """
    if text.startswith("---"):
        pattern, read = _YAML, _yaml
    elif text.startswith("+++"):
        pattern, read = _TOML, _toml
    else:
        return {}, text
    found = pattern.match(text, 0, _MOST_CHARS)
    if found is None:
        return {}, text
    try:
        fields = read(found.group(1))
        if fields is None:
            return {}, text
        return values.plain_mapping(fields), text[found.end() :]
    except values.Unsayable as error:
        raise Malformed(str(error)) from None
    except RecursionError:
        raise Malformed("it is nested too deeply") from None


def _toml(block: str) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads(block)
    except tomllib.TOMLDecodeError as error:
        raise Malformed(str(error)) from None


def _yaml(block: str) -> dict[Any, Any] | None:
    """Return the fields, or None where the block is something else than fields."""
    import yaml

    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(block)
    try:
        node = loader.get_single_node()
        if node is None:
            return {} if not block.strip() else None
        if not isinstance(node, yaml.MappingNode):
            return None
        _check(node)
        made: dict[Any, Any] = loader.construct_document(node)
        return made
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 2 if error.problem_mark is not None else 1
        raise Malformed(f"line {line}: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError, TypeError, OverflowError) as error:
        if isinstance(error, Malformed):
            raise
        raise Malformed(f"{error}"[:200]) from None
    finally:
        loader.dispose()


def _check(root: Any) -> None:
    """Refuse what a few lines can make huge (aliases), and fields that hide one another."""
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            raise Malformed("it has aliases (*name), which are not followed")
        seen.add(id(node))
        if node.id == "mapping":
            names = [key.value for key, _ in node.value if isinstance(key.value, str)]
            if "<<" in names:
                raise Malformed("it has merge keys (<<), which are not followed")
            if len(set(names)) < len(names):
                twice = next(name for at, name in enumerate(names) if name in names[:at])
                raise Malformed(f"the field {twice!r} is given twice")
            waiting += [part for pair in node.value for part in pair]
        elif node.id == "sequence":
            waiting += node.value
