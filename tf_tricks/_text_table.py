"""Rows of words and numbers as aligned text."""


def text_table(headings, rows):
    """Lines of text under `headings`: str and int as they are, floats with three digits, None as a blank."""
    cells = [list(headings), *([_text(value) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headings))]
    # Words begin at the left of their column, numbers end at its right.
    numbers = [all(not isinstance(row[i], str) for row in rows) for i in range(len(headings))]
    lines = []
    for row in cells:
        columns = zip(row, widths, numbers, strict=True)
        lines.append("  ".join(text.rjust(width) if number else text.ljust(width) for text, width, number in columns))
    return "\n".join(line.rstrip() for line in lines)


def _text(value):
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
