"""One file over HTTP: with a progress bar, going on where an earlier attempt stopped."""

import time
from dataclasses import dataclass
from pathlib import Path

import httpx
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from settings.errors import InputError


@dataclass(frozen=True)
class Transfer:
    """How a file is fetched.

    Attributes:
        patience: Seconds without a byte after which a server is taken to have stalled.
        attempts: Attempts that end at the same place, or before it, until it gives up.
        pause: Seconds before the second of these; it doubles with each.
    """

    patience: float = 30.0
    attempts: int = 5
    pause: float = 1.0

    def fetch(self, url: str, part: Path, final: Path) -> Path:
        """Fetch `url` into `part`, after what `part` holds already, and return `part`.

        Args:
            url: Address.
            part: File to write; it stays when this fails, so that the next call goes on.
            final: Where a person would put the file by hand, for errors.

        Raises:
            InputError: No network, an address that the server does not have, or a server that gave up.
        """
        furthest, failures = -1, 0
        with httpx.Client(timeout=self.patience, follow_redirects=True) as client, _bar() as bar:
            while True:
                try:
                    return self._attempt(client, url, part, bar)
                except httpx.HTTPStatusError as error:
                    reason = f"the server answered {error.response.status_code}"
                    hopeless = error.response.is_client_error
                except httpx.TransportError as error:
                    reason = str(error) or type(error).__name__
                    hopeless = isinstance(error, httpx.ConnectError) and furthest < 0
                except httpx.HTTPError as error:
                    reason, hopeless = str(error), True
                got = part.stat().st_size if part.exists() else 0
                failures = 1 if got > furthest else failures + 1
                furthest = max(got, furthest)
                if hopeless or failures >= self.attempts:
                    raise InputError(_by_hand(url, reason, part, final))
                time.sleep(self.pause * 2 ** (failures - 1))

    def _attempt(self, client: httpx.Client, url: str, part: Path, bar: Progress) -> Path:
        have = part.stat().st_size if part.exists() else 0
        # Compressed on the way, bytes could not be counted.
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        with client.stream("GET", url, headers=headers) as response:
            content_range = response.headers.get("Content-Range", "")
            if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
                if content_range.rpartition("/")[2] == str(have):
                    return part
                part.unlink()
                raise httpx.RemoteProtocolError("what was there does not fit the server's file")
            response.raise_for_status()
            goes_on = content_range.startswith(f"bytes {have}-")
            have = have if goes_on else 0
            length = response.headers.get("Content-Length")
            bar.update(
                bar.task_ids[0],
                filename=part.stem,
                completed=have,
                total=have + int(length) if length else None,
            )
            with part.open("ab" if goes_on else "wb") as file:
                # Chunks as they come: gathered into larger ones, the last would be lost in a cut.
                for chunk in response.iter_raw():
                    file.write(chunk)
                    bar.advance(bar.task_ids[0], len(chunk))
        return part


def _bar() -> Progress:
    console = Console()
    bar = Progress(
        TextColumn("{task.fields[filename]}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )
    bar.add_task("", total=None, filename="")
    return bar


def _by_hand(url: str, reason: str, part: Path, final: Path) -> str:
    kept = f" (what came is kept in {part}: the same command goes on from there)"
    return (
        f"cannot fetch {url}: {reason}{kept if part.exists() else ''}. "
        f"By hand: fetch this address elsewhere, put the file at {final}, and give the command again"
    )
