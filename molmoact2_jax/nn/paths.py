"""Names of parameters: the path of each leaf ("llm/blocks/q") and its selection by regular expression."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax

Tree = Any


def is_words(node: Any) -> bool:
    """Whether a node is a tuple of words of dimensions, the leaf of a tree of words."""
    return isinstance(node, tuple) and all(isinstance(word, str | None) for word in node)


def name(path: tuple[Any, ...]) -> str:
    """Writes a key path of `jax.tree_util` as words between slashes."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def names(tree: Tree, is_leaf: Callable[[Any], bool] | None = None) -> list[str]:
    """Lists the paths of all leaves, in the order of `jax.tree.leaves`."""
    return [name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)]


def select(tree: Tree, pattern: str, where: str, is_leaf: Callable[[Any], bool] | None = None) -> Tree:
    """Marks the leaves whose path contains a match of `pattern`.

    Args:
      tree: any tree.
      pattern: regular expression, as for `re.search`.
      where: name of the setting, for the error.
      is_leaf: as in `jax.tree.map`.

    Returns:
      A tree of bool of the same structure.

    Raises:
      ValueError: no leaf matches.
    """
    chosen = jax.tree_util.tree_map_with_path(
        lambda path, _: re.search(pattern, name(path)) is not None, tree, is_leaf=is_leaf
    )
    if not any(jax.tree.leaves(chosen)):
        known = names(tree, is_leaf)
        shown = ", ".join(known[:8]) + (f" and {len(known) - 8} more" if len(known) > 8 else "")
        raise ValueError(
            f"{where}: {pattern!r} matches no parameter, expected at least one of {shown}. Correct the expression."
        )
    return chosen
