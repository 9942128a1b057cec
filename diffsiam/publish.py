"""Trained networks as folders that others can use, to the Hugging Face Hub and back, by its own library.

A published folder holds weights (safetensors), their config, the model card README.md, and checksums.json. Where tokens
lie (HF_TOKEN, `hf auth login`), which mirror is asked (HF_ENDPOINT) and where downloads are kept (HF_HUB_CACHE) is that
library's business.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from diffsiam import runtime
from diffsiam.diffusion import pretrained
from diffsiam.errors import UserError
from diffsiam.report import card

CARD = "README.md"
CHECKSUMS = "checksums.json"  # file -> SHA-256
_WANTED = ["*.safetensors", "*.json", CARD]  # of a repository: what publish writes, and nothing that could hold code


def publish(folder: Path, out: Path, license: str = card.OTHER, to: str | None = None) -> None:
    """Write a trained encoder or diffusion model to ``out`` as it is uploaded, and upload it where asked to.

    Args:
        folder: ``results/representation/<data>/<method>/seed<k>`` or ``results/diffusion/<data>``.
        out: a folder that is not there yet.
        license: of the weights, for the card, by the Hub's word for it.
        to: ``owner/name`` of a repository, made private where there is none; None uploads nothing.
    Raises:
        UserError: no trained network, or not what the results beside it speak of; ``out`` is there; the Hub refuses.
    """
    trained = card.read(folder)
    if to is not None:
        _check_name(to)
    with _whole(out) as staging:
        for name in trained.files:
            if not (folder / name).is_file():
                raise runtime.missing(folder / name)
            shutil.copyfile(folder / name, staging / name)
        if not trained.is_encoder:
            pretrained.write_pipeline(staging)
        sums = {path.name: runtime.sha256(path) for path in sorted(staging.iterdir())}
        runtime.write_json(staging / CHECKSUMS, sums)
        runtime.write_text(staging / CARD, str(card.card(trained, sums, license)))
    if to is not None:
        _upload(out, to)


def _upload(folder: Path, to: str) -> None:
    from huggingface_hub import HfApi

    with _told(
        f"{to}: cannot be uploaded", f"{folder} is whole: give the same command with another --out, or upload it"
    ):
        api = HfApi(library_name="diffsiam")
        api.create_repo(to, private=True, exist_ok=True)
        commit = api.upload_folder(repo_id=to, folder_path=folder, commit_message="Publish by diffsiam")
    print(f"{commit.commit_url}\nAs private as the repository is; a new one is. Back with:")
    print(f"diffsiam fetch {to} --revision {commit.oid} --out DIR")


def fetch(name: str, revision: str, out: Path) -> None:
    """Get a published folder; what was fetched once is taken from the library's cache, without a network too.

    Args:
        name: the repository, ``owner/name``.
        revision: 40 hexadecimal digits of a commit: a branch or tag may move.
        out: a folder that is not there yet.
    Raises:
        UserError: it cannot be had, was not published by `publish`, or is not what its checksums say.
    """
    from huggingface_hub import snapshot_download

    _check_name(name)
    if not re.fullmatch("[0-9a-f]{40}", revision):
        raise UserError(
            f"--revision {revision}: needed are the 40 hexadecimal digits of a commit, since a branch or tag may "
            "move. `diffsiam publish --to` printed them; on the Hub they are under 'Files', 'History'."
        )
    with _whole(out) as staging:
        with _told(f"{name} at {revision}: cannot be fetched", "or copy the folder by hand from where it is"):
            kept = Path(snapshot_download(name, revision=revision, allow_patterns=_WANTED, library_name="diffsiam"))
        if not (kept / CHECKSUMS).is_file():
            raise UserError(
                f"{name} at {revision}: no {CHECKSUMS}, so not what `diffsiam publish` wrote. Name such a repository; "
                "a diffusion model of others is fetched by diffusion.source: fetch."
            )
        for file, expected in runtime.read_json(kept / CHECKSUMS).items():
            _copy(kept, staging, file, expected, f"{name} at {revision}")
        shutil.copyfile(kept / CHECKSUMS, staging / CHECKSUMS)
        if (kept / CARD).is_file():
            shutil.copyfile(kept / CARD, staging / CARD)


def _copy(kept: Path, staging: Path, file: str, expected: str, title: str) -> None:
    """One file that checksums.json names, which is somebody else's word: no other folder's file."""
    source = kept / file
    if Path(file).name != file or not source.is_file():
        raise UserError(
            f"{title}: {file!r}, which its {CHECKSUMS} names, is not there. Ask its owner to publish it again."
        )
    shutil.copyfile(source, staging / file)
    if (met := runtime.sha256(staging / file)) != expected:
        raise UserError(
            f"{title}: {file} has sha256 {met}, its {CHECKSUMS} says {expected}: damaged. Delete {source.resolve()} "
            "and run again; if it stays so, ask its owner to publish it again."
        )


def _check_name(name: str) -> None:
    if not re.fullmatch(pretrained.REPOSITORY, name):
        raise UserError(f"{name}: not a repository's name. Give owner/name, as in its address on the Hub.")


@contextlib.contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """A new folder beside ``out`` that becomes it when the block ends well, and goes when it does not."""
    if out.exists() and any(out.iterdir()):
        raise UserError(f"--out {out}: is there already. Name another folder, or delete it first.")
    with runtime.writing(out):
        staging = out.with_name(f".{out.name}.{os.getpid()}")
        staging.mkdir(parents=True)
    try:
        with runtime.writing(out):
            yield staging
            staging.replace(out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextlib.contextmanager
def _told(what: str, instead: str) -> Iterator[None]:
    """Whatever the Hub, its library or the way there refuses is one message. Not the exceptions' own text, which runs
    over many lines and names addresses that may be signed."""
    from huggingface_hub import errors
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # it asks five times, for half a minute, and warns of each
    try:
        yield
    except errors.RevisionNotFoundError:
        reason = "the repository has no such commit. Look it up under 'Files', 'History'"
    except errors.RepositoryNotFoundError:
        reason = "no such repository, or a private one. Check the name; `hf auth login` or HF_TOKEN opens what is yours"
    except errors.LocalEntryNotFoundError as e:
        cause = type(e.__cause__).__name__ if e.__cause__ else "no network"
        reason = f"{cause}, and it is not whole in the cache. Check the network; HF_ENDPOINT names a mirror of the Hub"
    except errors.HfHubHTTPError as e:
        closed = e.response.status_code in (401, 403)
        hint = "`hf auth login`, or HF_TOKEN with the right to, opens what is yours" if closed else "Run again later"
        reason = f"HTTP {e.response.status_code}. {hint}"
    except (errors.HTTPError, OSError, ValueError) as e:  # cut off, refused, another size than announced
        cause = e.strerror if isinstance(e, OSError) and e.strerror else type(e).__name__
        reason = f"{cause}. Check the network and the disk and run again"
    else:
        return
    raise UserError(f"{what}: {reason}; {instead}.")
