"""Gathering: the records that jobs wrote are appended to the folder of results, each once, by one process."""

from collections.abc import Callable, Sequence

from unlearnbench.errors import one_line
from unlearnbench.run.cluster.folder import Attempt, RunFolder
from unlearnbench.store.records import Record, ResultStore, read_line


class Gathering:
    """Moves the records of a run's parts to the folder of results."""

    def __init__(self, run: RunFolder, store: ResultStore) -> None:
        """Go on where an earlier launcher of this run ended."""
        self._run, self._store, self._note = run, store, run.path / "gathered.txt"
        self._old = set(self._note.read_text(encoding="utf-8").split()) if self._note.exists() else set[str]()
        self._known = self._old | {record.digest for record in store.read().records}
        self._offsets: dict[str, int] = {}  # file -> bytes that were read

    def new(self, part: str, attempts: Sequence[Attempt], warn: Callable[[str], None]) -> list[Record]:
        """Return the records that the attempts at a part have written since the last call, in their order."""
        found: list[Record] = []
        for folder in self._run.stores(part, attempts):
            for path in sorted(folder.glob("*/*.jsonl")):
                with path.open("rb") as file:
                    file.seek(self._offsets.get(str(path), 0))
                    for line in file:
                        if not line.endswith(b"\n"):
                            break  # it is being written, or its writer was killed
                        self._offsets[str(path)] = self._offsets.get(str(path), 0) + len(line)
                        try:
                            found.append(read_line(line))
                        except ValueError as error:
                            warn(f"{path}: a line is skipped: {one_line(str(error))}")
        return found

    def is_old(self, record: Record) -> bool:
        """Say whether an earlier launcher has gathered a record."""
        return record.digest in self._old

    def keep(self, record: Record) -> bool:
        """Append a record to the results, unless it is there; say whether it was appended."""
        if record.digest in self._known:
            return False
        self._store.append(record)
        self._known.add(record.digest)
        with self._note.open("a", encoding="utf-8") as file:  # after the record: it is better there twice than never
            file.write(f"{record.digest}\n")
        return True
