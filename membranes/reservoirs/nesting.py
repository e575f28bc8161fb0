"""Nested membranes as one: what crosses a boundary is a port, and flattening follows the ports.

A rule of a membrane sends a value into its child c by its own out port `c.p`, which is the child's in port `p`; what
the child gives to its out port `q` is the membrane's in port `c.q`. All rules of a step are one graph: it may go
through a boundary as often as it likes, but not in a circle.
"""

from __future__ import annotations

from echoc.compiler.ir import Membrane, Node, Port, Program, Rule, State, make, topological
from echoc.compiler.ir.node import rebuild
from echoc.errors import IRError

MAX_DEPTH = 100


def flatten(program: Program) -> Program:
    """The program as a single membrane: the children's rules inlined, their states named by their path.

    Raises: IRError for a port that nothing feeds, and for values that depend on themselves.
    """
    return Program(_Flattening(program.skin).membrane(), program.symbols)


class _Flattening:
    def __init__(self, skin: Membrane) -> None:
        self.membranes: dict[tuple[str, ...], Membrane] = {}
        todo: list[tuple[tuple[str, ...], Membrane]] = [((), skin)]
        while todo:
            path, membrane = todo.pop()
            if len(path) > MAX_DEPTH:
                raise IRError(f"membranes nest deeper than {MAX_DEPTH}")
            if len(membrane.rules) != 1:
                raise IRError(
                    f"membrane {membrane.name} has {len(membrane.rules)} rules; wanted one, which is the step"
                )
            self.membranes[path] = membrane
            todo += [((*path, child.name), child) for child in membrane.children]
        self.ready: dict[tuple[tuple[str, ...], str], Node] = {}
        self.done: dict[tuple[str, ...], dict[Node, Node]] = {path: {} for path in self.membranes}

    def membrane(self) -> Membrane:
        skin = self.membranes[()]
        inner = {child.name for child in skin.children}
        ports = tuple(p for p in skin.ports if p.name.partition(".")[0] not in inner or "." not in p.name)
        outputs = tuple((p.name, self.output((), p.name)) for p in ports if p.direction == "out")
        states, writes = [], []
        for path in sorted(self.membranes, key=lambda p: (-len(p), p)):
            for state in self.membranes[path].states:
                states.append(State(_path_name(path, state.name), state.type))
            for name, node in self.membranes[path].rules[0].next_states:
                writes.append((_path_name(path, name), self.value(path, node)))
        rule = Rule(skin.rules[0].name, outputs, tuple(writes))
        return Membrane(skin.name, tuple(states), ports, (rule,))

    def output(self, path: tuple[str, ...], name: str) -> Node:
        """What a membrane's rule gives to one of its out ports."""
        for port, node in self.membranes[path].rules[0].outputs:
            if port == name:
                return self.value(path, node)
        raise IRError(f"membrane {self.membranes[path].name} gives nothing to the out port {name!r}")

    def port(self, path: tuple[str, ...], node: Node) -> Node:
        """What an in port of a membrane stands for in the flat rule."""
        key = (path, str(node["name"]))
        if key not in self.ready:
            self.ready[key] = node  # stands for the value while it is looked up
            child, dot, port = key[1].partition(".")
            if dot and (*path, child) in self.membranes:
                self.ready[key] = self.output((*path, child), port)
            elif path:
                self.ready[key] = self.output(path[:-1], f"{path[-1]}.{key[1]}")
        elif self.ready[key] is node and (path or "." in key[1]):
            raise IRError(
                f"the in port {key[1]!r} of membrane {self.membranes[path].name} depends on itself in one step"
            )
        found = self.ready[key]
        if found.type != node.type:
            raise IRError(
                f"the in port {key[1]!r} of membrane {self.membranes[path].name} is {node.type}; found {found.type}"
            )
        return found

    def value(self, path: tuple[str, ...], root: Node) -> Node:
        """A node of a membrane's rule in the flat rule."""
        done = self.done[path]
        for node in topological([root]):
            if node in done:
                continue
            if node.op == "port":
                done[node] = self.port(path, node)
            elif node.op == "state":
                done[node] = make("state", **(dict(node.attrs) | {"name": _path_name(path, node["name"])}))
            else:
                done[node] = rebuild(node, tuple(done[i] for i in node.inputs))
        return done[root]


def _path_name(path: tuple[str, ...], name: str) -> str:
    return ".".join((*path, name))


def port(ports: list[Port], name: str, direction: str, node_or_size: Node | int, dtype: str) -> Node:
    """Declares a port of a vector; returns the node that reads it (for `in`), or the node given."""
    size = node_or_size if isinstance(node_or_size, int) else node_or_size.shape[0]
    read = make("port", name=name, shape=(size,), dtype=dtype)
    ports.append(Port(name, direction, read.tensor))
    return read if isinstance(node_or_size, int) else node_or_size
