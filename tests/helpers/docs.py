"""What README and the documentation show: commands, input files, scripts."""

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "docs" / "src"
DIRECTIVE = re.compile(r" *\.\. (code-block|literalinclude|parsed-literal|sourcecode|code)::(.*)")
OPTION = re.compile(r" *:(\w+):(.*)")
# text before a literal block, which has no directive
PARAGRAPH = re.compile(r"(?! *\.\. ).*::$")


@dataclass(frozen=True)
class Snippet:
    """One shown block.

    :param page: below ``docs/src``, or ``README.md``
    :param language: that of the directive, or ``literalinclude``, whose text is the path
    :param text: what is shown
    :param file: name of the file whose content it is, if the caption tells one
    """

    page: str
    language: str
    text: str
    file: str | None = None

    @property
    def key(self) -> tuple[str, str]:
        """Page and first line."""
        return self.page, self.text.splitlines()[0]


def snippets(page: str) -> list[Snippet]:
    """All blocks of a page, in their order.

    :param page: path below ``docs/src``, or ``README.md``
    """
    if page == "README.md":
        blocks = re.findall(r"^```(\w*)\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)
        return [Snippet(page, language, text) for language, text in blocks]
    lines = (SOURCE / page).read_text().splitlines()
    found = []
    for start, line in enumerate(lines):
        directive = DIRECTIVE.fullmatch(line)
        if directive is None and not PARAGRAPH.fullmatch(line):
            continue
        indent = len(line) - len(line.lstrip())
        end = start + 1
        while end < len(lines) and (
            not lines[end].strip() or len(lines[end]) - len(lines[end].lstrip()) > indent
        ):
            end += 1
        body = textwrap.dedent("\n".join(lines[start + 1 : end])).strip("\n").splitlines()
        options = {}
        while directive and body and (option := OPTION.fullmatch(body[0])):
            options[option[1]] = option[2].strip()
            body.pop(0)
        text = "\n".join(body).strip("\n") + "\n"
        if directive is None:
            found.append(Snippet(page, "", text))
        elif directive[1] == "literalinclude":
            included = (SOURCE / page).parent / directive[2].strip()
            path = included.resolve().relative_to(ROOT)
            found.append(Snippet(page, "literalinclude", path.as_posix()))
        else:
            found.append(Snippet(page, directive[2].strip(), text, options.get("caption")))
    return found


def pages() -> list[str]:
    """README and all pages written by hand."""
    found = (path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.rst"))
    # the gallery's pages are made from scripts, which the build of the documentation runs
    return ["README.md", *sorted(page for page in found if not page.startswith("examples/"))]
