"""What one export format has to offer: write the files, load them and answer, tell the kernels that run.

A further tool chain is one subclass, registered under the name of its runtime; verification, kernel check,
delivery and report then work as for the others. `tests/search/exporter_contract.py` is the conformance suite.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from search.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from compressors.compressed import Compressed
    from compressors.graph import Graph
    from compressors.resolve import Numerics
    from compressors.skeleton import Skeleton
    from search.kernels_found import FoundKernel
    from search.lowering_template import Template

#: Content of a network's files by name.
Files = Mapping[str, bytes]


class Exporter(ABC):
    """One runtime's files. Subclasses are final and hold no state.

    ``runtime`` is the target's runtime; ``names`` are the files' names, that of the model first; ``extra``
    names the optional part of this distribution that brings the runtime, "" where it is always there.
    """

    runtime: ClassVar[str]
    names: ClassVar[tuple[str, ...]]
    extra: ClassVar[str] = ""

    @abstractmethod
    def version(self) -> str:
        """Name and version of the runtime, such as "onnxruntime 1.32.0". Raises ImportError without it."""

    def require(self) -> None:
        """Raises InputError, with the command that installs it, when the runtime is not there."""
        try:
            self.version()
        except ImportError as problem:
            raise InputError(
                f"{self.runtime} is not installed; a file that cannot be verified is not written: "
                f"pip install 'tailorbird[{self.extra}]'"
            ) from problem

    @abstractmethod
    def write(self, compressed: Compressed) -> dict[str, bytes]:
        """The files of a compressed network. Raises UnsupportedOperationError."""

    @abstractmethod
    def answers(
        self,
        files: Files,
        batches: Iterable[tuple[Tensor, ...]],
        graph: Graph,
        numerics: Numerics | None = None,
    ) -> Iterator[list[Any]]:
        """Outputs of the loaded files, arrays of shape (batch, ...), for batches of inputs of ``graph``.

        The files are loaded as a user loads them, but that integer products are those of ``numerics``, the
        target's, where this machine's are others. Raises VerificationError when they cannot be loaded.
        """

    def apart(self, numerics: Numerics) -> str:
        """How `answers` differs from what a user of this very machine would see; "" where it does not."""
        return ""

    @abstractmethod
    def kernels(self, files: Files, method: str = "host") -> list[FoundKernel]:
        """What the runtime executes of the files, in order, for one sample. Raises InputError."""

    @abstractmethod
    def template(self, files: Files, graph: Graph, skeleton: Skeleton, batch: int, method: str) -> Template:
        """The kernel template that the files really lead to."""

    @abstractmethod
    def executes(self, compressed: Compressed) -> bool:
        """Whether precision and shape of every weight-bearing kernel have to be the policy's."""


def required(files: Files, name: str) -> bytes:
    """One of the files. Raises InputError where it is missing."""
    if name not in files:
        raise InputError(f"the exported network lacks {name}; there are {', '.join(files) or 'no files'}.")
    return files[name]
