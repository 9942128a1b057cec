"""Device, precision, named randomness, atomic files, weights and provenance.

PyTorch is imported inside the functions that need it: evaluation jobs without networks start in a third of the time.
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from diffsiam.errors import Facts, UserError
from diffsiam.params import Runtime

if TYPE_CHECKING:
    import pandas as pd
    import torch


# ------------------------------------------------------------------------------------------------- randomness
def derive_seed(seed: int, purpose: str, item: int | str = 0) -> int:
    """A 63-bit seed for one named draw: the same (seed, purpose, item) gives the same numbers everywhere."""
    key = hashlib.sha256(f"{seed}/{purpose}/{item}".encode()).digest()
    return int.from_bytes(key[:8], "big") >> 1


def rng(seed: int, purpose: str, item: int | str = 0) -> np.random.Generator:
    """NumPy generator of one named draw."""
    return np.random.Generator(np.random.Philox(derive_seed(seed, purpose, item)))


def generator(seed: int, purpose: str, item: int | str = 0, device: torch.device | str = "cpu") -> torch.Generator:
    """PyTorch generator of one named draw, on ``device``."""
    import torch

    return torch.Generator(device=device).manual_seed(derive_seed(seed, purpose, item))


# ------------------------------------------------------------------------------------------ device, precision
_WIDE_ENOUGH = 64  # channels from which bf16 was faster on the CPUs that it was measured on


def select_device(runtime: Runtime, *, steady: bool = True) -> torch.device:
    """The device that ``runtime.device`` names; sets the number of CPU threads and deterministic mode on the way.

    Args:
        steady: whether shapes recur so often that a search for a convolution's fastest algorithm pays.
    Raises:
        UserError: ``cuda`` was asked for and there is none.
    """
    import torch

    torch.set_num_threads(runtime.threads)
    torch.backends.cudnn.allow_tf32 = False  # convolutions would keep 10 bits of mantissa
    torch.backends.cudnn.benchmark = steady and not runtime.deterministic
    _keep_memory()
    if runtime.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
        torch.use_deterministic_algorithms(True)
    if runtime.device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "runtime.device: cuda was asked for, but PyTorch sees no CUDA device. Use auto or cpu, or run where "
            "`python -c 'import torch; print(torch.cuda.is_available())'` prints True."
        )
    use_cuda = runtime.device == "cuda" or (runtime.device == "auto" and torch.cuda.is_available())
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if use_cuda else torch.device("cpu")


def runs_triton(x: torch.Tensor) -> bool:
    """Whether our kernels of Triton, where there is any, take ``x``: on a GPU, but not in what PyTorch compiles."""
    import torch

    return not torch.compiler.is_compiling() and x.is_cuda and importlib.util.find_spec("triton") is not None


def _keep_memory() -> None:
    """Let the memory that one training step frees serve the next: glibc's habit of giving large blocks back to the
    system, and of faulting them in again, costs a tenth of a step on a CPU."""
    if platform.libc_ver()[0] == "glibc":
        allocator = ctypes.CDLL(None)
        trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of <malloc.h>
        allocator.mallopt(trim_threshold, 2**31 - 1)
        allocator.mallopt(mmap_max, 0)


def compute_dtype(runtime: Runtime, device: torch.device, width: int) -> torch.dtype:
    """bf16 or fp32, for autocast. ``auto`` is bf16 only where it is faster: on a CPU with instructions for it (AMX or
    AVX512_BF16), in networks whose widest feature map has ``width`` >= `_WIDE_ENOUGH` channels (docs/gpu.md)."""
    import torch

    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported()
    else:
        fast = width >= _WIDE_ENOUGH and (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
    return torch.bfloat16 if runtime.precision == "bf16" or (runtime.precision == "auto" and fast) else torch.float32


def use_graph(runtime: Runtime, device: torch.device) -> bool:
    """Whether steps are captured as CUDA graphs: ``auto`` is wherever there are any.

    Raises:
        UserError: they were asked for on another device.
    """
    if runtime.graph is True and device.type != "cuda":
        raise UserError(
            f"runtime.graph: true was asked for, but jobs run on {device.type}, which has no CUDA graphs. Use auto."
        )
    return runtime.graph is not False and device.type == "cuda"


# ----------------------------------------------------------------------------------------------- atomic files
@contextlib.contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """What the system refuses while a file is written (no room, no permission, a folder of that name) is a `UserError`
    that names ``path``, whichever library writes. What libraries raise of their own has no errno, and passes."""
    try:
        yield
    except OSError as e:
        if e.errno is None:
            raise
        raise _unwritable(path, e) from None


@contextlib.contextmanager
def atomic(path: Path | str) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; what is written there appears under ``path`` when the block ends
    well, and is removed when it does not. Every file is written through this, so that a full disk, or a folder that
    cannot be written to, is the same `UserError` everywhere."""
    path = Path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            with open(temporary, "rb") as f:
                os.fsync(f.fileno())
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _unwritable(path: Path | str, error: Exception) -> UserError:
    return UserError(
        f"{path}: cannot be written ({error}). What was there before is intact. Make room for it, or let this user "
        "write there, and run the same command again."
    )


def write_text(path: Path | str, text: str) -> None:
    """Write a text file atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Any) -> None:
    """Write JSON atomically, keys in the order given."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


# ------------------------------------------------------------------------------------------------------ reading
def missing(path: Path | str, error: OSError | None = None) -> UserError:
    """That a file is not there, and how to get it; or, where ``error`` says so, that it is none that can be read."""
    if isinstance(error, PermissionError | IsADirectoryError):
        return UserError(f"{path}: not to be read ({error.strerror}). Name a file that this user may read.")
    hint = f"Ask Snakemake for it: `{made}`" if (made := _made(path)) else "Name one that is there, or make it first"
    return UserError(f"{path}: no such file. {hint}.")


def damaged(path: Path | str, problem: str) -> UserError:
    """That a file is not what it should be, and how to get it anew. Nothing is planned for a file that is there, nor
    for one that is gone while what was made from it is up to date: so it is asked for by its name."""
    if command := _made(path):
        hint = f"Delete it and ask Snakemake for it by name: `rm {shlex.quote(str(path))} && {command}`."
    else:
        hint = "Delete it and run the command that made it again; where none did, name another."
    return UserError(f"{path}: {problem}. {hint}")


def _made(path: Path | str) -> str | None:
    """The command that makes ``path``, where it lies among the results of the project in the working directory."""
    place = Path(os.path.abspath(path))
    if not place.is_relative_to(Path.cwd() / "results"):
        return None
    return f"snakemake --cores all {shlex.quote(place.relative_to(Path.cwd()).as_posix())}"


def read_json(path: Path | str) -> Any:
    """Read JSON; a missing or damaged file is a `UserError`."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"), object_hook=lambda found: Facts(found, path))
    except (FileNotFoundError, PermissionError, IsADirectoryError) as e:
        raise missing(path, e) from None
    except (OSError, ValueError, RecursionError) as e:
        raise damaged(path, f"not valid JSON ({e})") from None


def read_csv(path: Path | str) -> pd.DataFrame:
    """Read a table; a missing or damaged file is a `UserError`."""
    import pandas as pd

    try:
        return pd.read_csv(path)
    except (FileNotFoundError, PermissionError, IsADirectoryError) as e:
        raise missing(path, e) from None
    except (OSError, ValueError) as e:  # pandas' own are ValueErrors
        raise damaged(path, f"not a readable table ({' '.join(str(e).split())})") from None


def read_array(path: Path | str) -> NDArray[Any]:
    """The array in a .npy file, as a memory map whose pages are private to this process; a missing or damaged file is a
    `UserError`."""
    try:
        return np.load(path, mmap_mode="c", allow_pickle=False)
    except (FileNotFoundError, PermissionError, IsADirectoryError) as e:
        raise missing(path, e) from None
    except Exception as e:  # a header that is damaged in the right place raises anything
        raise damaged(path, f"not a complete .npy file of plain numbers ({_cause(e)})") from None


def read_arrays(path: Path | str) -> dict[str, NDArray[Any]]:
    """The arrays in an .npz file, by name; a missing or damaged file is a `UserError`."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return dict(archive)
    except (FileNotFoundError, PermissionError, IsADirectoryError) as e:
        raise missing(path, e) from None
    except Exception as e:  # as above, and whatever the zip's reader raises
        raise damaged(path, f"not a complete .npz file of plain arrays ({_cause(e)})") from None


def _cause(error: Exception) -> str:
    """The first sentence of what NumPy says: the next may advise to unpickle the file."""
    return f"{type(error).__name__}: {str(error).partition('. ')[0]}"


def sha256(path: Path | str) -> str:
    """Checksum of a file, read in blocks."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


# ---------------------------------------------------------------------------------------------------- weights
def save_weights(path: Path | str, state: Mapping[str, torch.Tensor]) -> None:
    """Write tensors to a safetensors file, atomically."""
    import safetensors
    import safetensors.torch

    tensors = {k: v.detach().cpu().contiguous() for k, v in state.items()}
    with atomic(path) as temporary:
        try:
            safetensors.torch.save_file(tensors, temporary)
        except safetensors.SafetensorError as e:  # its own word for what the system refuses
            raise _unwritable(path, e) from None


def load_weights(path: Path | str) -> dict[str, torch.Tensor]:
    """Read a safetensors file to the CPU; a missing or damaged file, or one with NaN, is a `UserError`."""
    import safetensors
    import safetensors.torch

    try:
        state = safetensors.torch.load_file(path)
    except (FileNotFoundError, PermissionError, IsADirectoryError) as e:
        raise missing(path, e) from None
    except (safetensors.SafetensorError, OSError) as e:
        raise damaged(path, f"not a complete safetensors file ({e})") from None
    check_finite(state, path)
    return state


def check_finite(state: Mapping[str, torch.Tensor], title: Path | str) -> None:
    """Refuse weights with NaN or infinity: whatever is computed from them would be blamed for it."""
    for name, tensor in state.items():
        bad = int((~tensor.float().isfinite()).sum())
        if bad:
            raise UserError(
                f"{title}: {name} holds NaN or infinity in {bad} of {tensor.numel()} numbers: of a training that "
                "diverged, or damaged. Take weights from before that, or others."
            )


# ------------------------------------------------------------------------------------------------- provenance
_CODE = ("diffsiam", "workflow/rules", "workflow/scripts", "Snakefile")


def provenance() -> dict[str, Any]:
    """Versions, machine, commit and date, for the config.json beside a result."""
    import torch

    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(Path(__file__).resolve().parents[1]),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {_processor()}",
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "versions": {p: _version(p) for p in ("torch", "diffusers", "numpy", "scikit-learn", "snakemake", "dvc")},
    }


def _version(package: str) -> str | None:
    """None where it is not installed: a training without Snakemake shall not fail at its end for that."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit(root: Path) -> str | None:
    """The commit checked out in ``root``, with ``-dirty`` where package or rules differ from it; None where ``root`` is
    not the top of a repository: one that it happens to lie in has other commits. An edited params.yaml does not count:
    what was in it stands in the record itself."""
    elsewhere = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")  # a hook sets them for the repository that it is of
    own = {k: v for k, v in os.environ.items() if k not in elsewhere}
    own |= {"GIT_CEILING_DIRECTORIES": str(root.resolve().parent), "GIT_OPTIONAL_LOCKS": "0"}

    def git(*args: str) -> str:
        return subprocess.run(["git", *args], cwd=root, env=own, capture_output=True, text=True, check=False).stdout

    try:
        name = git("describe", "--always").strip()
        changed = git("status", "--porcelain", "--untracked-files=all", "--", *_CODE)
    except OSError:  # no git here: a record without a commit is better than a training that fails at its end
        return None
    return f"{name}-dirty" if name and changed else name or None


def _processor() -> str:
    """The processor's name: Linux keeps it where `platform` does not look."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


# --------------------------------------------------------------------------------------------------- progress
class Progress:
    """A progress bar with rate and time left on a terminal; one plain line every ``interval`` seconds in a log;
    nothing when ``quiet``."""

    def __init__(
        self, total: int, what: str, unit: str, *, start: int = 0, interval: float = 15.0, quiet: bool = False
    ) -> None:
        self.total, self.what, self.unit, self.interval = total, what, unit, interval
        self.done = self.start = start
        self.began = self.said = time.monotonic()
        self.bar, self.quiet = None, quiet
        if sys.stderr.isatty() and not quiet:
            import tqdm

            self.bar = tqdm.tqdm(total=total, desc=what, unit=unit, initial=start, dynamic_ncols=True)

    def update(self, count: int = 1, note: str = "") -> None:
        """Advance by ``count`` units; ``note`` stands at the end of the line."""
        self.done += count
        if self.bar is not None:
            self.bar.update(count)
            self.bar.set_postfix_str(note, refresh=False)
            return
        if self.quiet:
            return
        now = time.monotonic()
        if now - self.said >= self.interval or self.done == self.total:
            self.said = now
            rate = (self.done - self.start) / max(now - self.began, 1e-9)
            left = datetime.timedelta(seconds=round((self.total - self.done) / max(rate, 1e-9)))
            line = f"{self.what}: {self.done}/{self.total} {self.unit}, {rate:.1f} {self.unit}/s, {left} left {note}"
            print(line.rstrip(), file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the terminal tidy."""
        if self.bar is not None:
            self.bar.close()
