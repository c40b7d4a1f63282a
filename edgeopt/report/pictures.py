"""Pictures that matplotlib draws into files."""

from __future__ import annotations

from pathlib import Path

from edgeopt.errors import Finding, InputError, MissingDependencyError

__all__ = ["PICTURES", "check_picture"]

#: File name endings of pictures.
PICTURES = (".svg", ".png", ".pdf")


def check_picture(path: Path, option: str = "--picture") -> None:
    """Refuse a picture that cannot be drawn before any work is done for it.

    Parameters
    ----------
    path
        File of the picture.
    option
        Who asked for it, for the message.

    Raises
    ------
    InputError
        ``path`` does not end in one of :data:`PICTURES`.
    MissingDependencyError
        matplotlib is not installed.
    """
    from importlib.util import find_spec

    if path.suffix not in PICTURES:
        mend = f"end its name in {', '.join(PICTURES)}"
        raise InputError(Finding(option, f"'{path}' is no picture that can be drawn", mend))
    if find_spec("matplotlib") is None:
        raise MissingDependencyError("matplotlib", "plot", "drawing a picture")
