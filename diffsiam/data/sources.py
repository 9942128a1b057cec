"""What each data set is: classes, counts, metric, and the archives that it is published in, or where one's own lies.

The counts of the data sets of the thesis are those of the published splits; a copy under `data.root` may
hold fewer images, and `counts_match` tells. Nothing heavy is imported here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from diffsiam.errors import UserError


@dataclasses.dataclass(frozen=True)
class Archive:
    """One published file and what unpacking it yields.

    Attributes:
        file: its name.
        folder: where it belongs and is unpacked, under `data.root`; empty for `data.root` itself.
        makes: files and folders that it yields in ``folder``; empty where the file is used as it is.
        url: its address; None where none works any more.
        checksum: ``md5:...`` or ``sha256:...`` as torchvision publishes it; None where nobody does.
        megabytes: its size, roughly; None where unknown.
    """

    file: str
    folder: str
    makes: tuple[str, ...]
    url: str | None
    checksum: str | None
    megabytes: int | None

    def parts(self, root: Path) -> list[Path]:
        """The files and folders that are there when this archive needs no fetching."""
        return [root / self.folder / name for name in self.makes or (self.file,)]

    def present(self, root: Path) -> bool:
        """Whether all that it yields is in its place.

        Raises:
            UserError: the place may not be looked into.
        """
        try:
            for part in self.parts(root):
                part.stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as e:
            raise UserError(f"{e.filename}: cannot be looked for ({e.strerror}). Make the folder readable.") from None
        return True


@dataclasses.dataclass(frozen=True)
class Own:
    """Images of one's own: an entry of section `datasets` of params.yaml. `diffsiam.data.own` reads them.

    Attributes:
        path: a folder, an uncompressed tar, or a CSV of files and labels.
        layout: ``classes``: folders of classes; ``flat``: images without labels; None: as what is there looks.
        metric: of the linear probe.
        validation: share of train that is val where there is none; None: `data.val_fraction`.
        attributes: a CSV of attributes, or None.
    """

    path: str
    layout: Literal["classes", "flat"] | None = None
    metric: Literal["accuracy", "mean_per_class"] = "accuracy"
    validation: float | None = None
    attributes: str | None = None


@dataclasses.dataclass(frozen=True)
class DataSet:
    """One row of the table; ``train`` counts train and val together. Without archives it is embedded, or ``own``, whose
    counts are 0: they are not known beforehand.

    ``streamed``: its train images are decoded as they are used, never copied to an array. ``attributes``: their names,
    as published. ``pseudo_labels``: its attributes are those of a table (docs/data.md). ``mirror``: mirror images have
    the same attributes. ``targets``: it has continuous labels. ``test_sizes``: test images of each class, of an
    embedded data set. ``factors``: name and number of values of each factor, the slowest first, of a data set that
    holds one image of every combination, in order (`diffsiam.data.grid`); train is then all of it, and test, for
    figures, a part.
    """

    name: str
    classes: int
    train: int
    test: int
    metric: Literal["accuracy", "mean_per_class"] = "accuracy"
    own_val: bool = False
    archives: tuple[Archive, ...] = ()
    streamed: bool = False
    pseudo_labels: bool = False
    attributes: tuple[str, ...] = ()
    mirror: bool = False
    targets: bool = False
    test_sizes: tuple[int, ...] = ()
    factors: tuple[tuple[str, int], ...] = ()
    own: Own | None = None

    @property
    def labelled(self) -> bool:
        """Whether it has classes to tell apart, and so a place in the tables; of one's own images, as far as said."""
        return self.classes > 1 or (self.own is not None and self.own.layout != "flat")

    @property
    def embedded(self) -> bool:
        """Made from installed packages or rendered, so that nothing needs fetching."""
        return not self.archives and self.own is None

    @property
    def tabled(self) -> bool:
        """Whether its attributes are those of a table, whose columns are not known beforehand."""
        return self.pseudo_labels or (self.own is not None and self.own.attributes is not None)


def _cifar(number: int, md5: str) -> tuple[Archive, ...]:
    file = f"cifar-{number}-python.tar.gz"
    made = {10: "cifar-10-batches-py", 100: "cifar-100-python"}[number]
    return (Archive(file, "", (made,), f"https://www.cs.toronto.edu/~kriz/{file}", f"md5:{md5}", 170),)


_OXFORD = "https://www.robots.ox.ac.uk/~vgg/data"
_AIRCRAFT = (
    Archive(
        "fgvc-aircraft-2013b.tar.gz",
        "",
        ("fgvc-aircraft-2013b",),
        f"{_OXFORD}/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",
        None,
        2750,
    ),
)
_CALTECH = (
    Archive(
        "caltech-101.zip",
        "caltech101",
        ("101_ObjectCategories",),
        "https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip",
        "md5:3138e1922a9193bfa496528edbbc45d0",
        137,
    ),
)
# Stanford took the files down; the checksums are those of torchvision 0.13, which still fetched them.
_CARS = (
    Archive("car_devkit.tgz", "stanford_cars", ("devkit",), None, "md5:c3b158d763b6e2245038c8ad08e45376", 1),
    Archive("cars_train.tgz", "stanford_cars", ("cars_train",), None, "md5:065e5b463ae28d29e77c1b4b166cfe61", 979),
    Archive("cars_test.tgz", "stanford_cars", ("cars_test",), None, "md5:4ce7ebf6a94d07f1952d94dd34c4d501", 977),
    Archive("cars_test_annos_withlabels.mat", "stanford_cars", (), None, "md5:b0a2b23655a3edd16d84508592a98d10", 1),
)
_DTD = (
    Archive(
        "dtd-r1.0.1.tar.gz",
        "dtd",
        ("dtd",),
        f"{_OXFORD}/dtd/download/dtd-r1.0.1.tar.gz",
        "md5:fff73e5086ae6bdbea199a49dfb8a4c1",
        625,
    ),
)


def _flowers(file: str, makes: tuple[str, ...], md5: str, megabytes: int) -> Archive:
    return Archive(file, "flowers-102", makes, f"{_OXFORD}/flowers/102/{file}", f"md5:{md5}", megabytes)


_FLOWERS = (
    _flowers("102flowers.tgz", ("jpg",), "52808999861908f626f3c1f4e79d11fa", 345),
    _flowers("imagelabels.mat", (), "e0620be6f572b9609742df49c70aed4d", 1),
    _flowers("setid.mat", (), "a5357ecc9cb78c4bef273ce3793fc85c", 1),
)
_FOOD = (
    Archive(
        "food-101.tar.gz",
        "",
        ("food-101",),
        "http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",
        "md5:85eeb15f3717b99a5da872d97d918f87",
        5000,
    ),
)


def _pets(kind: str, md5: str, megabytes: int) -> Archive:
    file = f"{kind}.tar.gz"
    return Archive(file, "oxford-iiit-pet", (kind,), f"{_OXFORD}/pets/data/{file}", f"md5:{md5}", megabytes)


_PETS = (
    _pets("images", "5c4f3ee8e5d25df40f4fd59a7f44e54c", 792),
    _pets("annotations", "95a8c909bbe2e81eed6a22bccdf3f68f", 19),
)
# torchvision's SUN397 has no splits: they are in a second archive, kept out of the folder of the first.
_SUN = (
    Archive(
        "SUN397.tar.gz",
        "",
        ("SUN397",),
        "http://vision.princeton.edu/projects/2010/SUN/SUN397.tar.gz",
        "md5:8ca2778205c41d23104230ba66911c7a",
        39000,
    ),
    Archive(
        "Partitions.zip",
        "SUN397-partitions",
        ("Training_01.txt", "Testing_01.txt"),
        "https://vision.princeton.edu/projects/2010/SUN/download/Partitions.zip",
        "sha256:e3311ea5f812d4cc6faef194688343d1111f6cd6f70f2c62f393c2b8d6ba1ec9",
        None,
    ),
)

# torchvision fetches CelebA from Google Drive, which now and then refuses.
_CELEBA = (
    Archive(
        "img_align_celeba.zip", "celeba", ("img_align_celeba",), None, "md5:00d2c5bc6d35e252742224ab0c1e8fcb", 1443
    ),
    Archive("list_attr_celeba.txt", "celeba", (), None, "md5:75e246fa4810816ffd6ee81facbd2244", 26),
    Archive("list_eval_partition.txt", "celeba", (), None, "md5:d32c9cbf5e040fd4025c592c306e6668", 3),
)
_CELEBA_ATTRIBUTES = """
5_o_Clock_Shadow Arched_Eyebrows Attractive Bags_Under_Eyes Bald Bangs Big_Lips Big_Nose Black_Hair Blond_Hair
Blurry Brown_Hair Bushy_Eyebrows Chubby Double_Chin Eyeglasses Goatee Gray_Hair Heavy_Makeup High_Cheekbones
Male Mouth_Slightly_Open Mustache Narrow_Eyes No_Beard Oval_Face Pale_Skin Pointy_Nose Receding_Hairline
Rosy_Cheeks Sideburns Smiling Straight_Hair Wavy_Hair Wearing_Earrings Wearing_Hat Wearing_Lipstick
Wearing_Necklace Wearing_Necktie Young
"""
_SPRITES_ATTRIBUTES = (
    *("Circle", "Square", "Triangle", "Star", "Cross", "Ring"),
    *("Red", "Yellow", "Green", "Cyan", "Blue", "Magenta"),
    *("Large", "Left", "Top", "Dark background"),
)
_FFHQ = (Archive("ffhq", "", (), None, None, None),)  # a folder of its PNG files, of any size

# LFW's server is gone; the checksums are those that torchvision keeps. Attributes: Kumar et al. 2009.
_LFW_ATTRIBUTES = "https://www.cs.columbia.edu/CAVE/databases/pubfig/download/lfw_attributes.txt"
_LFW = (
    Archive("lfw-funneled.tgz", "lfw-py", ("lfw_funneled",), None, "md5:1b42dfed7d15c9b2dd63d5e5840c86ad", 243),
    Archive("peopleDevTrain.txt", "lfw-py", (), None, "md5:54eaac34beb6d042ed3a7d883e247a21", 1),
    Archive("peopleDevTest.txt", "lfw-py", (), None, "md5:e4bf5be0a43b5dcd9dc5ccfcb8fb19c5", 1),
    Archive("lfw_attributes.txt", "lfw-py", (), _LFW_ATTRIBUTES, None, 10),
)


def _lsun(part: str, megabytes: int) -> Archive:
    name = f"bedroom_{part}_lmdb"
    return Archive(f"{name}.zip", "", (name,), f"http://dl.yf.io/lsun/scenes/{name}.zip", None, megabytes)


_SHAPES3D = (
    Archive(
        "3dshapes.h5",
        "3dshapes",
        (),
        "https://storage.googleapis.com/3d-shapes/3dshapes.h5",
        "sha256:0a0f6ed98baff276a50f3a081a7434d788da63cb135a98189b2a5b5769be1785",
        268,
    ),
)
_CARS3D = (
    Archive(
        "nips2015-analogy-data.tar.gz",
        "cars3d",
        ("cars",),
        "http://www.scottreed.info/files/nips2015-analogy-data.tar.gz",
        "md5:4e866a7919c1beedf53964e6f7a23686",
        None,
    ),
)
_DSPRITES_FILE = "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.hdf5"
_DSPRITES = (
    Archive(
        _DSPRITES_FILE,
        "dsprites",
        (),
        f"https://github.com/deepmind/dsprites-dataset/raw/master/{_DSPRITES_FILE}",
        "sha256:729fa22e884c9c500e1f17415d580746b4c5894fbbb780a1319bbcfa39a745bb",
        28,
    ),
)


_MPI3D_FACTORS = (
    ("object colour", 6),
    ("object shape", 6),
    ("object size", 2),
    ("camera height", 3),
    ("background", 3),
    ("horizontal axis", 40),
    ("vertical axis", 40),
)


def _grid(name: str, factors: tuple[tuple[str, int], ...], archives: tuple[Archive, ...] = ()) -> DataSet:
    size = math.prod(values for _, values in factors)
    return DataSet(name, 1, size, 1_000, archives=archives, factors=factors)


def _mpi3d(variant: str, md5: str) -> DataSet:
    file = f"mpi3d_{variant}.npz"
    url = f"https://storage.googleapis.com/disentanglement_dataset/Final_Dataset/{file}"
    archive = Archive(file, "mpi3d", (), url, f"md5:{md5}", None)
    return _grid(f"MPI3D{variant}", _MPI3D_FACTORS, (archive,))


DATASETS: dict[str, DataSet] = {
    row.name: row
    for row in (
        DataSet("CIFAR10", 10, 50_000, 10_000, archives=_cifar(10, "c58f30108f718f92721af3b95e74349a")),
        DataSet("Aircraft", 100, 6_667, 3_333, "mean_per_class", own_val=True, archives=_AIRCRAFT),
        DataSet("Caltech", 102, 3_060, 6_084, "mean_per_class", archives=_CALTECH),
        DataSet("Cars", 196, 8_144, 8_041, archives=_CARS),
        DataSet("CIFAR100", 100, 50_000, 10_000, archives=_cifar(100, "eb9058c3a382ffc7106e4002c42a8d85")),
        DataSet("DTD", 47, 3_760, 1_880, own_val=True, archives=_DTD),
        DataSet("Flowers", 102, 2_040, 6_149, "mean_per_class", own_val=True, archives=_FLOWERS),
        DataSet("Food", 101, 75_750, 25_250, archives=_FOOD),
        DataSet("Pets", 37, 3_680, 3_669, "mean_per_class", archives=_PETS),
        DataSet("SUN", 397, 19_850, 19_850, archives=_SUN),
        DataSet(
            "CelebA",
            1,
            182_637,
            19_962,
            own_val=True,
            archives=_CELEBA,
            attributes=tuple(_CELEBA_ATTRIBUTES.split()),
            mirror=True,
        ),
        DataSet("FFHQ", 1, 60_000, 10_000, archives=_FFHQ),
        DataSet(
            "Bedroom",
            1,
            3_033_042,
            300,
            archives=(_lsun("train", 43_700), _lsun("val", 5)),
            streamed=True,
            pseudo_labels=True,
        ),
        DataSet("LFW", 1, 9_525, 3_708, archives=_LFW, targets=True),  # less the few images without attributes
        DataSet("digits", 10, 1_198, 599, test_sizes=(59, 61, 59, 61, 60, 61, 60, 60, 58, 60)),
        DataSet("photos", 10, 1_000, 500, test_sizes=(50,) * 10),
        DataSet("sprites", 6, 3_000, 900, attributes=_SPRITES_ATTRIBUTES, targets=True, test_sizes=(150,) * 6),
        _grid(
            "Shapes3D",
            (("floor hue", 10), ("wall hue", 10), ("object hue", 10), ("scale", 8), ("shape", 4), ("orientation", 15)),
            _SHAPES3D,
        ),
        _mpi3d("toy", "55889cb7c7dfc655d6e0277beee88868"),
        _mpi3d("realistic", "59a6225b88b635365f70c91b3e52f70f"),
        _mpi3d("real", "0f33f609918fb5c97996692f91129802"),
        _grid("Cars3D", (("elevation", 4), ("azimuth", 24), ("type", 183)), _CARS3D),
        _grid("dSprites", (("shape", 3), ("scale", 6), ("orientation", 40), ("x", 32), ("y", 32)), _DSPRITES),
        _grid(
            "rooms",
            (("floor hue", 6), ("wall hue", 6), ("object hue", 6), ("scale", 4), ("shape", 4), ("orientation", 7)),
        ),
        _grid("tiles", (("shape", 3), ("scale", 4), ("orientation", 8), ("x", 8), ("y", 8))),
    )
}


Entries = Mapping[str, Mapping[str, Any]]  # section `datasets` of params.yaml, as it is written


def table(own: Entries) -> dict[str, DataSet]:
    """`DATASETS` and behind it the data sets of one's own. Whoever takes a name takes the entries too, which come from
    the parameters: no table is changed."""
    return DATASETS | {name: _own(name, entry) for name, entry in own.items()}


def _own(name: str, entry: Mapping[str, Any]) -> DataSet:
    if "path" not in entry:
        raise UserError(f"datasets.{name}.path is missing: the folder, tar or CSV of the images.")
    own = Own(**entry)
    return DataSet(name, 0, 0, 0, own.metric, own=own)


def get(name: str, own: Entries | None = None) -> DataSet:
    """The row of a data set; an unknown name is a `UserError`."""
    rows = table(own or {})
    if name not in rows:
        raise UserError(
            f"{name}: no such data set. Allowed: {', '.join(rows)}. Images of your own get a name in section datasets "
            "of params.yaml."
        )
    return rows[name]


def counts_match(name: str, n_train: int, n_test: int) -> bool:
    """Whether a prepared data set has the published split sizes (train with val), not those of a subset; images of
    one's own have none."""
    row = DATASETS.get(name)
    return row is not None and (n_train, n_test) == (row.train, row.test)
