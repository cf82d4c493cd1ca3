"""What libraries raise over a damaged file, as one-line errors."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from jkoflow.data.checks import DataError
from jkoflow.errors import UserError


def one_line(error: BaseException, limit: int = 200) -> str:
    """Returns the text of an exception without line breaks."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


@contextmanager
def reading(kind: str) -> Iterator[None]:
    """Surrounds a library's reading of a file, and nothing else.

    A damaged file can raise anything in a library (a tokeniser's error, TypeError, RuntimeError, ...), so everything it
    raises is the file's fault; its warnings about such a file would only repeat that.

    Arguments:
        kind: Suffix of the kind of file, such as ``".npy"``.

    Raises:
        DataError: Instead of what the library raises.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (UserError, PermissionError, FileNotFoundError):
        raise
    except MemoryError as error:
        raise DataError(f"is damaged or does not fit in memory: {one_line(error)}") from error
    except Exception as error:
        raise DataError(f"is damaged or not a {kind} file: {one_line(error)}") from error
