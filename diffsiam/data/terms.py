"""Under which terms each data set is used, as far as its owner says: the table of docs/data.md, for model cards."""

from __future__ import annotations

from typing import NamedTuple


class Terms(NamedTuple):
    """What the owner says, and where; both Markdown, the latter empty where there is no place any more."""

    text: str
    where: str


_CIFAR = Terms("no licence is known", "<https://www.cs.toronto.edu/~kriz/cifar.html>")
_MPI3D = Terms("CC BY 4.0", "<https://github.com/rr-learning/disentanglement_dataset>")
_DRAWN = Terms("drawn by this project: Apache-2.0", "`LICENSE`")
OWN = Terms("images of the trainer's own: who publishes what was made of them answers for their terms", "")

TERMS = {
    "CIFAR10": _CIFAR,
    "CIFAR100": _CIFAR,
    "Aircraft": Terms(
        "for non-commercial research only; the photographers keep their copyright",
        "<https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/>",
    ),
    "Caltech": Terms("read there", "<https://data.caltech.edu/records/mzrjq-6wc02>"),
    "Cars": Terms("read at the source that you take it from: its own page is gone", ""),
    "DTD": Terms("for research", "<https://www.robots.ox.ac.uk/~vgg/data/dtd/>"),
    "Flowers": Terms("read there", "<https://www.robots.ox.ac.uk/~vgg/data/flowers/102/>"),
    "Food": Terms(
        "its makers do not own the images; beyond scientific fair use ask the pictures' owners",
        "the archive's own text files; <https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/>",
    ),
    "Pets": Terms(
        "CC BY-SA 4.0; the images' owners keep their copyright", "<https://www.robots.ox.ac.uk/~vgg/data/pets/>"
    ),
    "SUN": Terms("read there", "<https://vision.princeton.edu/projects/2010/SUN/>"),
    "CelebA": Terms(
        "for non-commercial research only; its makers do not own the images",
        "<https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html>",
    ),
    "FFHQ": Terms(
        "the set CC BY-NC-SA 4.0; each image under a licence of its own, all of which allow non-commercial use",
        "<https://github.com/NVlabs/ffhq-dataset>",
    ),
    "Bedroom": Terms("read there", "<https://github.com/fyu/lsun>"),
    "LFW": Terms(
        "no licence is known; its server is gone. The attributes: read there",
        "<https://www.cs.columbia.edu/CAVE/databases/pubfig/>",
    ),
    "digits": Terms(
        "a copy of UCI's set of handwritten digits inside scikit-learn",
        "`sklearn.datasets.load_digits`; <https://archive.ics.uci.edu/>",
    ),
    "photos": Terms(
        "each photograph its own: public domain, CC0, CC BY 2.0 and others",
        "`sklearn/datasets/images/README.txt`, and the docstrings of `skimage.data`",
    ),
    "sprites": _DRAWN,
    "rooms": _DRAWN,
    "tiles": _DRAWN,
    "Shapes3D": Terms("read there", "<https://github.com/google-deepmind/3d-shapes>"),
    "MPI3Dtoy": _MPI3D,
    "MPI3Drealistic": _MPI3D,
    "MPI3Dreal": _MPI3D,
    "Cars3D": Terms("read at its source", "<http://www.scottreed.info/>"),
    "dSprites": Terms("read there", "<https://github.com/google-deepmind/dsprites-dataset>"),
}
