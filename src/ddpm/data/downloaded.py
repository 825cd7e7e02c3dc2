"""Data sets that torchvision knows where to find: official files, each with its official checksum."""

from abc import abstractmethod
from pathlib import Path

from filelock import FileLock
from torchvision.datasets.utils import check_md5

from ddpm.data.image_data import ImageData
from ddpm.errors import Refused


class Downloaded(ImageData):
    """A data set of a few files below `root`, laid out as torchvision does.

    Args:
        download: fetch files that are missing or damaged; without it they are refused.

    The other arguments are ImageData's; `root` must be given.
    """

    def __init__(self, *, root: str, download: bool, batch_size: int, num_workers: int, flip: bool, seed: int) -> None:
        super().__init__(root=root, batch_size=batch_size, num_workers=num_workers, flip=flip, seed=seed)
        self.folder, self.download = Path(root), download
        self._verified = False

    @abstractmethod
    def checksums(self) -> dict[Path, str]:
        """The files that the data need, and their md5."""

    @abstractmethod
    def fetch(self) -> None:
        """Download what `checksums` names; torchvision's errors pass."""

    def prepare_data(self) -> None:
        """Verify the files, or fetch them; Lightning calls it once a machine, before all others read.

        Raises:
            Refused: naming the file that is missing or whose checksum is wrong, and the remedy.
        """
        if self._verified:
            return
        fault = self._fault()
        if fault and self.download:
            self._fetch_alone()
            fault = self._fault()
        if fault:
            raise Refused(fault)
        self._verified = True

    def _fault(self) -> str | None:
        for path, md5 in self.checksums().items():
            if not path.is_file():
                return (
                    f"{self.facts.name} needs {path}, which is missing: pass data.download=true to fetch it, "
                    "or data.root=FOLDER to say where it is"
                )
            if not check_md5(str(path), md5):
                return (
                    f"{path} is damaged (its md5 is not {md5}): delete it or pass data.download=true to fetch it again"
                )
        return None

    def _fetch_alone(self) -> None:
        """Fetch under a lock: several processes may be asked to at once."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / ".download.lock"):
                if self._fault():
                    self.fetch()
        except (OSError, RuntimeError) as error:
            raise Refused(
                f"{self.facts.name} could not be downloaded to {self.folder} ({error}): "
                "put its files there, or pass data.root=FOLDER to say where they are"
            ) from error
