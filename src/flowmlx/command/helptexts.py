"""Help of options from the docstrings of the fields that declare them, for tyro."""

import ast
import inspect
import sys
from itertools import pairwise
from typing import Annotated

from tyro.conf import arg


def join_lines(*classes: type) -> None:
    """Make one line of each field's docstring, as its help: tyro would keep the line breaks.

    `classes`: dataclasses of one module, at its top level.
    """
    tree = ast.parse(inspect.getsource(sys.modules[classes[0].__module__]))
    bodies = {node.name: node.body for node in tree.body if isinstance(node, ast.ClassDef)}
    for cls in classes:
        for pair in pairwise(bodies[cls.__name__]):
            match pair:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(ast.Constant(str(text))):
                    one_line = arg(help=" ".join(text.split()))
                    cls.__annotations__[name] = Annotated[cls.__annotations__[name], one_line]
