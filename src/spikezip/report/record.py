"""The record a run leaves behind (``record.json``), read back and checked: all that a report is made from."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from spikezip.errors import BundleError
from spikezip.report.schema import Record

FORMAT = "spikezip.record/1"


def parse_record(content: Any, where: str) -> Record:
    """Check one record.

    Args:
        content: the decoded JSON.
        where: what to call it in an error.

    Raises:
        BundleError: it is no record, of another version, or malformed; the message names the place.
    """
    if not isinstance(content, Mapping) or "format" not in content:
        raise BundleError(f'{where} is not a spikezip record: it has no "format". Write one with measure(...).save().')
    if content["format"] != FORMAT:
        kind = str(content["format"])
        if kind.startswith("spikezip.record/"):
            raise BundleError(f"{where} is of format {kind!r}; this version reads {FORMAT!r}. Use a matching spikezip.")
        raise BundleError(f"{where} is not a spikezip record: its format is {kind!r}, not {FORMAT!r}.")
    try:
        return Record.model_validate(dict(content))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in first["loc"]).lstrip(".") or "the record"
        more = error.error_count() - 1
        raise BundleError(
            f"{where} is malformed at {place}: {first['msg'].removeprefix('Value error, ')}"
            f"{f' (and {more} more)' if more else ''}. Measure the run again, or mend the file."
        ) from None


def load_record(path: str | Path) -> dict[str, Any]:
    """Read a ``record.json`` and check that a report can be made from it.

    Args:
        path: the file, or the folder of a run that holds ``record.json``.

    Returns:
        The record as it stands in the file, fit for :func:`~spikezip.report.write_report`.

    Raises:
        BundleError: the file is missing, truncated, foreign, of another version, holds NaN or infinity, or
            contradicts itself (series of the wrong length, an 'equal' certificate with mismatches).
    """
    path = Path(path)
    if path.is_dir():
        path = path / "record.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except FileNotFoundError:
        raise BundleError(
            f"There is no record at {path}. Make one: spikezip run BUNDLE --data DATA --out {shlex.quote(str(path))},"
            f" or measure(...).save({path.name!r})."
        ) from None
    except json.JSONDecodeError as error:
        raise BundleError(
            f"{path} is not whole JSON (line {error.lineno}, column {error.colno}: {error.msg}); was writing it"
            " cut off? Measure the run again."
        ) from None
    except UnicodeDecodeError:
        raise BundleError(f"{path} is not a text file, so not a spikezip record.") from None
    except _NotANumberError as error:
        raise BundleError(
            f"{path} holds {error}, which is no number and cannot be shown. Find what gave it (a diverged training, a"
            " division by no images), then measure again."
        ) from None
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}.") from None
    except RecursionError:
        raise BundleError(f"{path} is nested too deeply to be a spikezip record.") from None
    parse_record(content, str(path))
    return content


class _NotANumberError(Exception):
    pass


def _refuse(constant: str):
    raise _NotANumberError(constant)
