"""Device, precision, named randomness, atomic files, weights and provenance.

PyTorch is imported inside the functions that need it: evaluation jobs without networks start in a third of the time.
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffsiam.errors import UserError
from diffsiam.params import Runtime

if TYPE_CHECKING:
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
def select_device(runtime: Runtime) -> torch.device:
    """The device that ``runtime.device`` names; sets the number of CPU threads and deterministic mode
    on the way.

    Raises:
        UserError: ``cuda`` was asked for and there is none.
    """
    import torch

    torch.set_num_threads(runtime.threads)
    torch.backends.cudnn.allow_tf32 = False  # convolutions would keep 10 bits of mantissa
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


def _keep_memory() -> None:
    """Let the memory that one training step frees serve the next: glibc's habit of giving large blocks back to the
    system, and of faulting them in again, costs a tenth of a step on a CPU."""
    if platform.libc_ver()[0] == "glibc":
        allocator = ctypes.CDLL(None)
        trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of <malloc.h>
        allocator.mallopt(trim_threshold, 2**31 - 1)
        allocator.mallopt(mmap_max, 0)


def compute_dtype(runtime: Runtime, device: torch.device) -> torch.dtype:
    """bf16 or fp32, for autocast. ``auto`` is bf16 only where it is faster: a CPU needs bf16 instructions (AMX or
    AVX512_BF16); without them bf16 convolutions run at about half the speed of fp32."""
    import torch

    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported()
    else:
        fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    use_bf16 = runtime.precision == "bf16" or (runtime.precision == "auto" and fast)
    return torch.bfloat16 if use_bf16 else torch.float32


# ----------------------------------------------------------------------------------------------- atomic files
@contextlib.contextmanager
def atomic(path: Path | str) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; what is written there appears under ``path`` when the block ends
    well, and is removed when it does not. A folder that cannot be written to is a `UserError`."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    except OSError as e:
        raise _unwritable(path, e) from None
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
    """Write a text file atomically; a full disk is a `UserError`."""
    with atomic(path) as temporary:
        try:
            temporary.write_text(text, encoding="utf-8")
        except OSError as e:
            raise _unwritable(path, e) from None


def write_json(path: Path | str, value: Any) -> None:
    """Write JSON atomically, keys in the order given."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path | str) -> Any:
    """Read JSON; a missing or damaged file is a `UserError`."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file. Ask Snakemake for it: `snakemake --cores all {path}`.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: not valid JSON ({e}). Delete it and run Snakemake again.") from None


def sha256(path: Path | str) -> str:
    """Checksum of a file, read in blocks."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


# ---------------------------------------------------------------------------------------------------- weights
def save_weights(path: Path | str, state: Mapping[str, torch.Tensor]) -> None:
    """Write tensors to a safetensors file, atomically; a full disk is a `UserError`."""
    import safetensors
    import safetensors.torch

    tensors = {k: v.detach().cpu().contiguous() for k, v in state.items()}
    with atomic(path) as temporary:
        try:
            safetensors.torch.save_file(tensors, temporary)
        except (safetensors.SafetensorError, OSError) as e:
            raise _unwritable(path, e) from None


def load_weights(path: Path | str) -> dict[str, torch.Tensor]:
    """Read a safetensors file to the CPU; a missing or damaged file, or one with NaN, is a `UserError`."""
    import safetensors
    import safetensors.torch

    try:
        state = safetensors.torch.load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file. Ask Snakemake for it: `snakemake --cores all {path}`.") from None
    except (safetensors.SafetensorError, OSError) as e:
        raise UserError(f"{path}: not a complete safetensors file ({e}). Delete it and run Snakemake again.") from None
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

    packages = ("torch", "diffusers", "numpy", "scikit-learn", "snakemake", "dvc")
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(Path(__file__).resolve().parents[1]),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {_processor()}",
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


def _commit(root: Path) -> str | None:
    """The commit checked out in ``root``, with ``-dirty`` where package or rules differ from it. An edited params.yaml
    does not count: what was in it stands in the record itself."""

    def git(*args: str) -> str:
        return subprocess.run(["git", *args], cwd=root, capture_output=True, text=True, check=False).stdout.strip()

    try:
        name, changed = git("describe", "--always"), git("diff", "HEAD", "--name-only", "--", *_CODE)
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
