"""Bring entries of another zoo, from a folder or over HTTP: resumed, checked against their digests, then renamed in.

Every file is fetched to <zoo>/.pull/<its SHA-256>, which a broken transfer leaves to go on from (HTTP Range, RFC 9110
section 14); only a file with the listed size and digest leaves that folder, and only a whole entry enters the zoo. The
digests come from the index of the same source: they catch damage, not a source that lies. Against that, give the
index's own SHA-256, from whomever you trust.
"""

import hashlib
import http.client
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import quote, urlsplit

from compress.errors import UserError
from compress.runs import Emit, Event
from compress.zoo_index import INDEX, File, Indexed, digest, listed_entry, parse_index
from compress.zoo_placing import beside, settle

CHUNK = 1 << 18
INDEX_LIMIT = 16 << 20  # bytes of an index
TRIES = 4  # of one file, each going on where the last one stopped
TIMEOUT_S = 30.0
AGENT = "mdcompress"


class Source(Protocol):
    """A zoo somewhere else."""

    where: str

    def index(self) -> bytes:
        """The bytes of its index."""

    def fetch(self, file: str, place: Path, listed: File, tell: Callable[[int], None]) -> None:
        """One of its files, going on from what is at `place` already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulled:
    """One entry that was brought, or was there already."""

    name: str
    place: Path
    new: bool


def pull(
    source: str,
    names: tuple[str, ...],
    zoo: Path,
    *,
    emit: Emit,
    replace: bool = False,
    index_sha256: str | None = None,
) -> tuple[Pulled, ...]:
    """Bring entries; nothing is half replaced, and doing it again goes on where it stopped.

    Args:
        source: a zoo's folder, or its address, http:// or https://.
        names: entries; none means all of them.
        zoo: where they go; made if it is not there.
        emit: told of progress, in bytes.
        replace: whether entries of the same name and other content make room.
        index_sha256: what the index's SHA-256 must be.

    Raises:
        UserError: no zoo at the source, no such entry, a damaged or unlisted file, a name that leads out of the zoo, an
            entry of other content in the way, or a transfer that broke off (the same command goes on).
    """
    found = _source(source)
    content = found.index()
    if index_sha256 is not None and (given := hashlib.sha256(content).hexdigest()) != index_sha256.lower():
        raise UserError(f"{found.where}/{INDEX}: SHA-256 {given}, not {index_sha256}: this is not the zoo you trust")
    index = parse_index(content, f"{found.where}/{INDEX}")
    chosen = {name: listed_entry(index, name, found.where) for name in names or sorted(index)}
    waiting = zoo / ".pull"
    brought = tuple(_bring(found, name, listed, zoo, emit, replace) for name, listed in chosen.items())
    shutil.rmtree(waiting, ignore_errors=True)
    return brought


def _bring(source: Source, name: str, listed: Indexed, zoo: Path, emit: Emit, replace: bool) -> Pulled:
    place = zoo / name
    if _same(place, listed.files):
        emit(Event(kind="cached", name=name))
    else:
        emit(Event(kind="started", name=name))
        _refuse_other(place, replace)
        _fetch_all(source, name, listed.files, zoo / ".pull", emit)
    with beside(zoo, name) as folder:
        new = not _same(place, listed.files)
        for file, expected in listed.files.items():
            target = folder / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(zoo / ".pull" / expected.sha256 if new else place / file, target)
        settle(zoo, name, folder, replace=replace)
    if new:
        emit(Event(kind="added", name=name, text=str(place)))
    return Pulled(name=name, place=place, new=new)


def _same(place: Path, files: Mapping[str, File]) -> bool:
    return place.is_dir() and all((place / f).is_file() and digest(place / f) == e for f, e in files.items())


def _refuse_other(place: Path, replace: bool) -> None:
    """Before anything is fetched."""
    if place.exists() and not replace:
        raise UserError(f"{place}: an entry with other content is there; pull into another zoo, or with --replace")


def _fetch_all(source: Source, name: str, files: Mapping[str, File], waiting: Path, emit: Emit) -> None:
    waiting.mkdir(parents=True, exist_ok=True)
    total, before = sum(file.bytes for file in files.values()), 0
    for file, expected in sorted(files.items()):
        place, base = waiting / expected.sha256, before

        def tell(done: int, base: int = base, file: str = file) -> None:
            emit(Event(kind="progress", name=name, text=file, done=base + done, total=total))

        if not place.is_file() or digest(place) != expected:
            part = place.with_suffix(".part")
            source.fetch(f"{name}/{file}", part, expected, tell)
            _check(part, expected, f"{source.where}/{name}/{file}")
            part.replace(place)
        before += expected.bytes


def _check(part: Path, expected: File, where: str) -> None:
    found = digest(part)
    if found != expected:
        part.unlink()
        raise UserError(
            f"{where}: {found.bytes} bytes with SHA-256 {found.sha256[:12]}..., the index lists {expected.bytes} with "
            f"{expected.sha256[:12]}...; it was thrown away: pull again, or tell whoever keeps that zoo"
        )


def _source(source: str) -> Source:
    scheme = urlsplit(source).scheme
    if scheme in ("http", "https"):
        return Web(source.rstrip("/"))
    if "://" in source:
        raise UserError(f"{source}: cannot pull over {scheme}; give a folder, or an address with http:// or https://")
    return Folder(Path(source))


class Folder:
    """A zoo on a disk."""

    def __init__(self, root: Path) -> None:
        self.root, self.where = root, str(root)

    def index(self) -> bytes:
        path = self.root / INDEX
        if not path.is_file():
            raise UserError(f"{self.root}: no zoo here (no {INDEX}); give a zoo's folder, or its address")
        return path.read_bytes()

    def fetch(self, file: str, place: Path, listed: File, tell: Callable[[int], None]) -> None:
        path = self.root / file
        if not path.is_file() or not path.resolve().is_relative_to(self.root.resolve()):
            raise UserError(f"{path}: is missing, or leads out of the zoo; tell whoever keeps that zoo")
        shutil.copyfile(path, place)
        tell(listed.bytes)


class _SameOrSafer(urllib.request.HTTPRedirectHandler):
    """Redirects stay on HTTP, and never go from https to http."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):  # type: ignore[no-untyped-def]
        scheme = urlsplit(newurl).scheme
        if scheme not in ("http", "https") or (scheme == "http" and urlsplit(req.full_url).scheme == "https"):
            raise UserError(f"{req.full_url} redirects to {newurl}, which is less safe; give the address it should be")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class Web:
    """A zoo on a static host."""

    def __init__(self, root: str) -> None:
        self.where = root
        self.opener = urllib.request.build_opener(_SameOrSafer)

    def index(self) -> bytes:
        try:
            with self._open(INDEX, 0) as answer:
                content: bytes = answer.read(INDEX_LIMIT + 1)
        except (OSError, http.client.HTTPException) as error:
            raise UserError(f"{self.where}/{INDEX}: {_reason(error)}; is this the address of a zoo?") from error
        if len(content) > INDEX_LIMIT:
            raise UserError(f"{self.where}/{INDEX}: more than {INDEX_LIMIT} bytes; this is no zoo's index")
        return content

    def fetch(self, file: str, place: Path, listed: File, tell: Callable[[int], None]) -> None:
        problem = ""
        for attempt in range(TRIES):
            if attempt:
                time.sleep(0.5 * 2 ** (attempt - 1))
            try:
                self._continue(file, place, listed, tell)
            except (OSError, http.client.HTTPException) as error:
                problem = _reason(error)
                if isinstance(error, urllib.error.HTTPError) and error.code in (401, 403, 404, 410):
                    break
                continue
            if place.stat().st_size >= listed.bytes:
                return
            problem = "the server stopped half way"
        have = place.stat().st_size if place.exists() else 0
        held = f"{have} of {listed.bytes} bytes are here"
        raise UserError(f"{self.where}/{file}: {problem} ({held}); the same command goes on from there")

    def _continue(self, file: str, place: Path, listed: File, tell: Callable[[int], None]) -> None:
        have = place.stat().st_size if place.exists() else 0
        if have >= listed.bytes:
            place.unlink(missing_ok=True)
            have = 0
        with self._open(file, have) as answer, place.open("ab" if answer.status == 206 else "wb") as target:
            done = have if answer.status == 206 else 0
            while done <= listed.bytes and (chunk := answer.read(CHUNK)):
                target.write(chunk)
                done += len(chunk)
                tell(min(done, listed.bytes))

    def _open(self, file: str, begin: int) -> http.client.HTTPResponse:
        headers = {"User-Agent": AGENT} | ({"Range": f"bytes={begin}-"} if begin else {})
        request = urllib.request.Request(f"{self.where}/{quote(file)}", headers=headers)  # noqa: S310 - http(s) only
        answer: http.client.HTTPResponse = self.opener.open(request, timeout=TIMEOUT_S)
        return answer


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"
    return str(getattr(error, "reason", "") or error) or type(error).__name__
