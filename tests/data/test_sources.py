from __future__ import annotations

import inspect
import subprocess
import sys

import pytest
from torchvision import datasets

from diffsiam.data import sources
from diffsiam.errors import UserError

# As published: classes, train with val, test, metric, and whether the set has a val split of its own.
PUBLISHED = """
CIFAR10 10 50000 10000 accuracy random
Aircraft 100 6667 3333 mean_per_class own
Caltech 102 3060 6084 mean_per_class random
Cars 196 8144 8041 accuracy random
CIFAR100 100 50000 10000 accuracy random
DTD 47 3760 1880 accuracy own
Flowers 102 2040 6149 mean_per_class own
Food 101 75750 25250 accuracy random
Pets 37 3680 3669 mean_per_class random
SUN 397 19850 19850 accuracy random
"""


def test_the_ten_data_sets_have_the_counts_metrics_and_splits_of_the_method() -> None:
    ten = [row for row in sources.DATASETS.values() if row.labelled and not row.embedded]
    table = [f"{r.name} {r.classes} {r.train} {r.test} {r.metric} {'own' if r.own_val else 'random'}" for r in ten]
    assert table == PUBLISHED.split("\n")[1:-1]


def test_addresses_and_checksums_are_torchvisions() -> None:
    theirs = {
        "CIFAR10": [(datasets.CIFAR10.url, datasets.CIFAR10.tgz_md5)],
        "CIFAR100": [(datasets.CIFAR100.url, datasets.CIFAR100.tgz_md5)],
        "Aircraft": [(datasets.FGVCAircraft._URL, None)],
        "DTD": [(datasets.DTD._URL, datasets.DTD._MD5)],
        "Flowers": [
            (datasets.Flowers102._download_url_prefix + f, m) for f, m in datasets.Flowers102._file_dict.values()
        ],
        "Food": [(datasets.Food101._URL, datasets.Food101._MD5)],
        "Pets": list(datasets.OxfordIIITPet._RESOURCES),
    }
    for name, pairs in theirs.items():
        ours = [(a.url, a.checksum) for a in sources.DATASETS[name].archives]
        assert ours == [(url, md5 and f"md5:{md5}") for url, md5 in pairs], name
    images = sources.DATASETS["SUN"].archives[0]
    assert (images.url, images.checksum) == (datasets.SUN397._DATASET_URL, f"md5:{datasets.SUN397._DATASET_MD5}")
    (caltech,) = sources.DATASETS["Caltech"].archives  # torchvision has these two inside its download method
    text = inspect.getsource(datasets.Caltech101)
    assert f'"{caltech.url}"' in text
    assert caltech.checksum is not None
    assert f'md5="{caltech.checksum.removeprefix("md5:")}"' in text


def test_lfw_has_torchvisions_names_and_checksums() -> None:
    theirs = datasets.LFWPeople
    folder, archive, md5 = theirs.file_dict["funneled"]
    expected = {archive: md5} | {name: theirs.checksums[name] for name in ("peopleDevTrain.txt", "peopleDevTest.txt")}
    images, *lists = sources.DATASETS["LFW"].archives[:-1]
    assert {a.file: (a.checksum or "").removeprefix("md5:") for a in (images, *lists)} == expected
    assert images.makes == (folder,)
    assert {a.folder for a in sources.DATASETS["LFW"].archives} == {theirs.base_folder}


GRIDS = """
Shapes3D 480000 10,10,10,8,4,15 sha256:0a0f6ed98baff276a50f3a081a7434d788da63cb135a98189b2a5b5769be1785
MPI3Dtoy 1036800 6,6,2,3,3,40,40 md5:55889cb7c7dfc655d6e0277beee88868
MPI3Drealistic 1036800 6,6,2,3,3,40,40 md5:59a6225b88b635365f70c91b3e52f70f
MPI3Dreal 1036800 6,6,2,3,3,40,40 md5:0f33f609918fb5c97996692f91129802
Cars3D 17568 4,24,183 md5:4e866a7919c1beedf53964e6f7a23686
dSprites 737280 3,6,40,32,32 sha256:729fa22e884c9c500e1f17415d580746b4c5894fbbb780a1319bbcfa39a745bb
rooms 24192 6,6,6,4,4,7 -
tiles 6144 3,4,8,8,8 -
"""  # images, numbers of values, the slowest first, and the checksum of the published file


def test_grids_have_the_published_sizes_and_checksums_and_no_classes() -> None:
    grids = [row for row in sources.DATASETS.values() if row.factors]
    sizes = [",".join(str(values) for _, values in row.factors) for row in grids]
    sums = [row.archives[0].checksum if row.archives else "-" for row in grids]
    table = [f"{row.name} {row.train} {size} {c}" for row, size, c in zip(grids, sizes, sums, strict=True)]
    assert table == GRIDS.split("\n")[1:-1]
    assert not any(row.labelled for row in grids)
    assert {row.test for row in grids} == {1000}


def test_counts_match_only_the_whole_data_set() -> None:
    assert sources.counts_match("Aircraft", 6667, 3333)
    assert not sources.counts_match("Aircraft", 3334, 3333)  # train without its val part
    assert not sources.counts_match("CIFAR10", 15_000, 5_000)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"CIFAR11.*CIFAR10.*sprites"):
        sources.get("CIFAR11")


def test_the_table_is_read_without_loading_any_library() -> None:
    heavy = {"torch", "torchvision", "sklearn", "skimage", "numpy", "PIL"}
    code = f"import sys, diffsiam.data.sources; print({heavy!r} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
