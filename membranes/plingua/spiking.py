"""Regular expressions over one letter, as ultimately periodic sets of lengths (Parikh 1961).

The expression becomes an automaton without empty steps; the sets of states after 0, 1, 2, ... letters repeat from some
point on, which gives the threshold, the period and the lengths that are accepted.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from echoc.compiler.ir.algebra import Guard

MAX_STATES = 20_000
MAX_LENGTHS = 50_000
MAX_DEPTH = 50


class BadExpression(Exception):
    """An expression that is malformed or too large; the message says where."""


@dataclass(slots=True)
class _Automaton:
    """Thompson's construction: empty steps and letter steps between states."""

    empty: list[list[int]] = field(default_factory=list)
    letter: list[int] = field(default_factory=list)

    def state(self) -> int:
        if len(self.empty) >= MAX_STATES:
            raise BadExpression(f"a regular expression of more than {MAX_STATES} states")
        self.empty.append([])
        self.letter.append(-1)
        return len(self.empty) - 1

    def closure(self, states: set[int]) -> frozenset[int]:
        queue = list(states)
        while queue:
            for other in self.empty[queue.pop()]:
                if other not in states:
                    states.add(other)
                    queue.append(other)
        return frozenset(states)


Piece = tuple[int, int]
"""The first and last state of a part of the automaton."""


class _Reader:
    """letter, ( ), |, *, +, ?, {n}, {n,}, {n,m}; `a*3` with a number is a{3}, as in multisets."""

    def __init__(self, text: str, letter: str) -> None:
        self.text, self.letter = "".join(text.split()), letter
        self.at, self.depth = 0, 0
        self.made = _Automaton()

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def fault(self, wanted: str) -> BadExpression:
        found = repr(self.peek()) if self.peek() else "the end"
        return BadExpression(
            f'the regular expression "{self.text[:80]}": found {found} at character {self.at + 1}; wanted {wanted}'
        )

    def union(self) -> Piece:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise BadExpression(f"a regular expression with parentheses more than {MAX_DEPTH} deep")
        start, end = self.made.state(), self.made.state()
        while True:
            first, last = self.sequence()
            self.made.empty[start].append(first)
            self.made.empty[last].append(end)
            if self.peek() != "|":
                self.depth -= 1
                return start, end
            self.at += 1

    def sequence(self) -> Piece:
        start = end = self.made.state()
        while self.peek() not in ("", "|", ")"):
            begin = self.at
            piece = self.atom()
            first, last = self.repeated(piece, begin)
            self.made.empty[end].append(first)
            end = last
        return start, end

    def atom(self) -> Piece:
        if self.text.startswith(self.letter, self.at):
            self.at += len(self.letter)
            start, end = self.made.state(), self.made.state()
            self.made.letter[start] = end
            return start, end
        if self.peek() != "(":
            raise self.fault(f"{self.letter!r} or '('")
        self.at += 1
        piece = self.union()
        if self.peek() != ")":
            raise self.fault("')'")
        self.at += 1
        return piece

    def number(self) -> int | None:
        start = self.at
        while self.peek().isascii() and self.peek().isdigit():
            self.at += 1
        digits = self.text[start : self.at]
        if len(digits) > 9:
            raise BadExpression(f"a regular expression that repeats {digits[:20]}... times")
        return int(digits) if digits else None

    def repeated(self, piece: Piece, begin: int) -> Piece:
        after = self.at
        while self.peek() and self.peek() in "*+?{":
            sign = self.peek()
            self.at += 1
            low, high = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(sign, (0, None))
            if sign == "*":
                count = self.number()
                if count is not None:
                    low = high = count
            elif sign == "{":
                low, high = self.bounds()
            end = self.at
            piece = self.times(piece, low, high, begin, after)
            self.at = after = end
        return piece

    def bounds(self) -> tuple[int, int | None]:
        low = self.number()
        if low is None:
            raise self.fault("a number")
        high: int | None = low
        if self.peek() == ",":
            self.at += 1
            high = self.number()
        if self.peek() != "}":
            raise self.fault("'}'")
        self.at += 1
        if high is not None and high < low:
            raise BadExpression(f"a regular expression that repeats {low} to {high} times")
        return low, high

    def times(self, piece: Piece, low: int, high: int | None, begin: int, after: int) -> Piece:
        """`piece` repeated low to high times; copies are made as the states of the automaton."""
        start = end = self.made.state()
        stops = []
        for i in range(max(low, high or 0, 1 if high is None else 0)):
            if i >= low:
                stops.append(end)
            first, last = self.copy(piece)
            self.made.empty[end].append(first)
            end = last
        final = self.made.state()
        if high is None:
            if low == 0:
                first, last = self.copy(piece)
                start = end = self.made.state()
                self.made.empty[start].append(first)
                self.made.empty[last].append(start)
            else:
                self.made.empty[end].append(first)
        for stop in (*stops, end):
            self.made.empty[stop].append(final)
        return start, final

    def copy(self, piece: Piece) -> Piece:
        """A fresh copy of all states that the piece reaches."""
        made, new = self.made, {}
        queue = [piece[0]]
        new[piece[0]] = made.state()
        while queue:
            state = queue.pop()
            targets = list(made.empty[state])
            if made.letter[state] >= 0:
                targets.append(made.letter[state])
            for target in targets:
                if target not in new:
                    new[target] = made.state()
                    queue.append(target)
        for old, fresh in list(new.items()):
            made.empty[fresh] = [new[t] for t in made.empty[old]]
            made.letter[fresh] = new[made.letter[old]] if made.letter[old] >= 0 else -1
        if piece[1] not in new:
            new[piece[1]] = made.state()
        return new[piece[0]], new[piece[1]]


def unary_language(text: str, letter: str) -> Guard:
    """The guard `in` for "the number of `letter` is the length of a word of the expression `text`".

    Raises BadExpression for another letter, a malformed expression, or one whose set needs too many steps to find.
    """
    reader = _Reader(text, letter)
    start, end = reader.union()
    if reader.peek():
        raise reader.fault("the end of the expression")
    made = reader.made
    current = made.closure({start})
    seen: dict[frozenset[int], int] = {}
    accepted: list[bool] = []
    work = 0
    while current not in seen:
        seen[current] = len(accepted)
        accepted.append(end in current)
        work += len(current) + 1
        if len(accepted) > MAX_LENGTHS or work > 5_000_000:
            raise BadExpression("a regular expression whose lengths repeat only after very many steps")
        current = made.closure({made.letter[s] for s in current if made.letter[s] >= 0})
    return _canonical(letter, accepted, seen[current])


def _canonical(letter: str, accepted: list[bool], threshold: int) -> Guard:
    """The guard of the set of all n with accepted[n], which repeats from the threshold on, in least numbers."""
    cycle = accepted[threshold:]
    period = next(p for p in range(1, len(cycle) + 1) if len(cycle) % p == 0 and cycle == cycle[:p] * (len(cycle) // p))
    while threshold and accepted[threshold - 1] == accepted[threshold - 1 + period]:
        threshold -= 1
    starts = tuple(n for n in range(threshold) if accepted[n])
    residues = tuple(n for n in range(period) if accepted[threshold + n])
    return Guard("in", letter, starts=starts, threshold=threshold, period=period, residues=residues)
