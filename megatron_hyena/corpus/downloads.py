"""Sources of a sample that lie in an object store or behind a web server, brought here."""

from __future__ import annotations

from pathlib import Path

from megatron_hyena.corpus.samples import parted
from megatron_hyena.data.remote import is_remote, read_range, size_of
from megatron_hyena.formats.sheet import Location


class Downloads:
    """Copies of the remote sources of one sample, in a folder that holds nothing else."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.copies: dict[str, Path] = {}
        """URL → the file."""

    def local(self, location: Location) -> Location:
        """The location itself, or for a URL its copy; `TYPE=URL` keeps its type.

        Raises UserError as `read_range` does; a body that breaks off is taken up there.
        """
        kind, url = parted(location)
        if not is_remote(url):
            return location
        # A folder each, for names may be equal; by its name a file is known to readers.
        place = self.folder / str(len(self.copies))
        place.mkdir(parents=True)
        copy = self.copies[url] = place / Path(url).name
        with copy.open("wb") as file:
            for block in read_range(url, 0, size_of(url)):
                file.write(block)
        return f"{kind}{copy}"
