"""A first look at XML that comes from outside: well formed, without entities of its own, not too deep or too large."""

from __future__ import annotations

from xml.parsers import expat

from echoc.compiler.ir.algebra import Where

from .source import SourceText

MAX_DEPTH = 200
MAX_ELEMENTS = 2_000_000


def check_xml(source: SourceText) -> None:
    """Raises SourceError unless the text is XML that may be handed to a parser in another language.

    Document types are refused: their entities can unfold to any size.
    """
    parser = expat.ParserCreate("utf-8")
    depth = count = 0

    def here() -> Where:
        return Where(source.file, parser.CurrentLineNumber, parser.CurrentColumnNumber + 1)

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal depth, count
        depth, count = depth + 1, count + 1
        if depth > MAX_DEPTH or count > MAX_ELEMENTS:
            limit = f"at most {MAX_DEPTH} inside each other" if depth > MAX_DEPTH else f"at most {MAX_ELEMENTS}"
            raise source.error_at(f"too many elements, at <{name[:40]}>", here(), limit)

    def end(name: str) -> None:
        nonlocal depth
        depth -= 1

    def doctype(*_: object) -> None:
        raise source.error_at("a document type, whose entities are not read", here(), "XML without <!DOCTYPE>")

    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.StartDoctypeDeclHandler = doctype
    try:
        parser.Parse(source.text.encode("utf-8", "replace"), True)
    except expat.ExpatError as error:
        where = Where(source.file, error.lineno, error.offset + 1)
        raise source.error_at(f"this is not XML: {expat.errors.messages[error.code]}", where) from error
